#include <stdio.h>
#include <stdlib.h>

/* Prints the prime numbers up to the first argument, on one line. */
int main(int argc, char **argv)
{
    const char *separator = "";
    long last = argc > 1 ? strtol(argv[1], NULL, 10) : 0;

    for (long n = 2; n <= last; n++) {
        long divisor = 2;
        while (divisor * divisor <= n && n % divisor != 0)
            divisor++;
        if (divisor * divisor > n) {
            printf("%s%ld", separator, n);
            separator = " ";
        }
    }
    putchar('\n');
    return 0;
}
