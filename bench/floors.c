/* The work of a build that no builder gets around, done by nothing else than C.
 *
 *   floors list FOLDER           the names below a folder, and an lstat of each
 *   floors layer FOLDER BLOB     a gzip layer of all files there, and its digests
 *   floors unpack BLOB FOLDER    the files of such a layer; its digests are checked
 *   floors steps COUNT ROOT      so many times a process in namespaces of its own, on an overlay
 *
 * Each prints its seconds. bench/floors.py builds this, runs it, and says what for. Only trusted
 * folders: nothing here is safe from who swaps files meanwhile.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, BLOCKS = 8, TAR = 512, READERS = 2 };

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

/* A file's bytes on their way to the threads that hash and compress them, in blocks. */
static struct {
	unsigned char *bytes[BLOCKS];
	size_t size[BLOCKS];
	long filled, taken[READERS];
	int ended;
	pthread_mutex_t lock;
	pthread_cond_t changed;
} ring = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static long slowest(void)
{
	return ring.taken[0] < ring.taken[1] ? ring.taken[0] : ring.taken[1];
}

static void publish(int last)
{
	pthread_mutex_lock(&ring.lock);
	ring.filled++;
	ring.ended = last;
	pthread_cond_broadcast(&ring.changed);
	while (ring.filled - slowest() >= BLOCKS)
		pthread_cond_wait(&ring.changed, &ring.lock);
	ring.size[ring.filled % BLOCKS] = 0;
	pthread_mutex_unlock(&ring.lock);
}

static void put(const void *data, size_t size)
{
	while (size) {
		long at = ring.filled % BLOCKS;
		size_t room = BLOCK - ring.size[at], part = size < room ? size : room;
		memcpy(ring.bytes[at] + ring.size[at], data, part);
		ring.size[at] += part;
		data = (const char *)data + part;
		size -= part;
		if (ring.size[at] == BLOCK)
			publish(0);
	}
}

/* The next block for one of the readers; its size is 0 at the end. */
static unsigned char *take(int reader, size_t *size)
{
	pthread_mutex_lock(&ring.lock);
	while (ring.taken[reader] == ring.filled && !ring.ended)
		pthread_cond_wait(&ring.changed, &ring.lock);
	long at = ring.taken[reader] % BLOCKS;
	*size = ring.taken[reader] == ring.filled ? 0 : ring.size[at];
	pthread_mutex_unlock(&ring.lock);
	return ring.bytes[at];
}

static void give_back(int reader)
{
	pthread_mutex_lock(&ring.lock);
	ring.taken[reader]++;
	pthread_cond_broadcast(&ring.changed);
	pthread_mutex_unlock(&ring.lock);
}

static void *hash_tar(void *unused)
{
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	size_t size;
	for (unsigned char *block; block = take(0, &size), size; give_back(0))
		EVP_DigestUpdate(hash, block, size);
	unsigned char digest[32];
	EVP_DigestFinal_ex(hash, digest, NULL);
	return unused;
}

static void *compress_tar(void *path)
{
	static unsigned char packed[BLOCK + BLOCK / 4], work[ISAL_DEF_LVL1_DEFAULT];
	int blob = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(blob >= 0, path);
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	struct isal_zstream stream;
	isal_deflate_init(&stream);
	stream.gzip_flag = IGZIP_GZIP;
	stream.level = 1;
	stream.level_buf = work;
	stream.level_buf_size = sizeof work;
	size_t size;
	do {
		unsigned char *block = take(1, &size);
		stream.next_in = block;
		stream.avail_in = size;
		stream.end_of_stream = size == 0;
		do {
			stream.next_out = packed;
			stream.avail_out = sizeof packed;
			check(isal_deflate(&stream) == COMP_OK, "deflate");
			size_t count = sizeof packed - stream.avail_out;
			EVP_DigestUpdate(hash, packed, count);
			check(write(blob, packed, count) == (ssize_t)count, path);
		} while (stream.avail_out == 0);
		if (size)
			give_back(1);
	} while (size);
	unsigned char digest[32];
	EVP_DigestFinal_ex(hash, digest, NULL);
	close(blob);
	return NULL;
}

static void put_header(const char *path, const struct stat *status)
{
	char head[TAR] = "";
	snprintf(head, 100, "%s", path);
	snprintf(head + 100, 8, "%07o", status->st_mode & 07777);
	snprintf(head + 108, 8, "%07o", 0);
	snprintf(head + 116, 8, "%07o", 0);
	snprintf(head + 124, 12, "%011lo", S_ISDIR(status->st_mode) ? 0L : (long)status->st_size);
	snprintf(head + 136, 12, "%011lo", (long)status->st_mtime);
	memset(head + 148, ' ', 8);
	head[156] = S_ISDIR(status->st_mode) ? '5' : '0';
	memcpy(head + 257, "ustar\00000", 8);
	unsigned sum = 0;
	for (int i = 0; i < TAR; i++)
		sum += (unsigned char)head[i];
	snprintf(head + 148, 8, "%06o", sum);
	put(head, TAR);
}

static void put_file(int folder, const char *name, const char *path)
{
	static unsigned char piece[BLOCK];
	static const char padding[TAR];
	char names[256];
	struct stat status;
	int file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	check(file >= 0 && fstat(file, &status) == 0, path);
	check(flistxattr(file, names, sizeof names) >= 0, path);
	put_header(path, &status);
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	ssize_t count;
	for (off_t left = status.st_size; left; left -= count) {
		count = read(file, piece, sizeof piece);
		check(count > 0, path);
		EVP_DigestUpdate(hash, piece, count);
		put(piece, count);
	}
	unsigned char digest[32];
	EVP_DigestFinal_ex(hash, digest, NULL);
	EVP_MD_CTX_free(hash);
	put(padding, -status.st_size & (TAR - 1));
	close(file);
}

static int by_name(const struct dirent **one, const struct dirent **other)
{
	return strcmp((*one)->d_name, (*other)->d_name);
}

static long each(int parent, const char *name, const char *path, int with_content)
{
	struct dirent **found;
	int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	check(folder >= 0, name);
	int count = scandirat(parent, name, &found, NULL, by_name);
	check(count >= 0, name);
	long files = 0;
	for (int i = 0; i < count; free(found[i++])) {
		const char *inner = found[i]->d_name;
		if (strcmp(inner, ".") == 0 || strcmp(inner, "..") == 0)
			continue;
		struct stat status;
		char whole[4096];
		snprintf(whole, sizeof whole, "%s%s%s", path, *path ? "/" : "", inner);
		check(fstatat(folder, inner, &status, AT_SYMLINK_NOFOLLOW) == 0, inner);
		if (S_ISDIR(status.st_mode)) {
			if (with_content)
				put_header(whole, &status);
			files += each(folder, inner, whole, with_content);
		} else if (S_ISREG(status.st_mode)) {
			if (with_content)
				put_file(folder, inner, whole);
			files++;
		}
	}
	free(found);
	close(folder);
	return files;
}

static void make_layer(const char *folder, char *blob)
{
	static const char end[2 * TAR];
	pthread_t hashing, compressing;
	for (int i = 0; i < BLOCKS; i++)
		ring.bytes[i] = malloc(BLOCK);
	pthread_create(&hashing, NULL, hash_tar, NULL);
	pthread_create(&compressing, NULL, compress_tar, blob);
	each(AT_FDCWD, folder, "", 1);
	put(end, sizeof end);
	publish(1);
	pthread_join(hashing, NULL);
	pthread_join(compressing, NULL);
}

/* The plain bytes of a blob, `size` of them; hashed on their way. */
static struct {
	int blob;
	struct inflate_state state;
	EVP_MD_CTX *packed_hash, *plain_hash;
	unsigned char packed[1 << 18], plain[1 << 18];
	size_t begin, end;
} in;

static const unsigned char *plain(size_t most, size_t *size)
{
	while (in.begin == in.end) {
		if (in.state.avail_in == 0) {
			ssize_t count = read(in.blob, in.packed, sizeof in.packed);
			check(count > 0, "the blob");
			EVP_DigestUpdate(in.packed_hash, in.packed, count);
			in.state.next_in = in.packed;
			in.state.avail_in = count;
		}
		in.state.next_out = in.plain;
		in.state.avail_out = sizeof in.plain;
		check(isal_inflate(&in.state) == ISAL_DECOMP_OK, "inflate");
		in.begin = 0;
		in.end = sizeof in.plain - in.state.avail_out;
		EVP_DigestUpdate(in.plain_hash, in.plain, in.end);
	}
	*size = in.end - in.begin < most ? in.end - in.begin : most;
	in.begin += *size;
	return in.plain + in.begin - *size;
}

static void unpack_file(const char *path, size_t size, mode_t mode)
{
	struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	check(file >= 0, path);
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	size_t padding = -size & (TAR - 1), part;
	for (; size; size -= part) {
		const unsigned char *piece = plain(size, &part);
		EVP_DigestUpdate(hash, piece, part);
		check(write(file, piece, part) == (ssize_t)part, path);
	}
	for (; padding; padding -= part)
		plain(padding, &part);
	unsigned char digest[32];
	EVP_DigestFinal_ex(hash, digest, NULL);
	EVP_MD_CTX_free(hash);
	check(fchown(file, 0, 0) == 0 && fchmod(file, mode) == 0, path);
	check(futimens(file, times) == 0, path);
	close(file);
}

static void unpack(const char *blob, const char *folder)
{
	in.blob = open(blob, O_RDONLY | O_CLOEXEC);
	check(in.blob >= 0 && chdir(folder) == 0, blob);
	isal_inflate_init(&in.state);
	in.state.crc_flag = ISAL_GZIP;
	in.packed_hash = EVP_MD_CTX_new();
	in.plain_hash = EVP_MD_CTX_new();
	EVP_DigestInit_ex(in.packed_hash, EVP_sha256(), NULL);
	EVP_DigestInit_ex(in.plain_hash, EVP_sha256(), NULL);
	for (;;) {
		char head[TAR];
		size_t part;
		for (size_t at = 0; at < TAR; at += part) {
			const unsigned char *piece = plain(TAR - at, &part);
			memcpy(head + at, piece, part);
		}
		if (!*head)
			break;
		mode_t mode = strtol(head + 100, NULL, 8);
		if (head[156] == '5')
			check(mkdir(head, mode) == 0, head);
		else
			unpack_file(head, strtol(head + 124, NULL, 8), mode);
	}
}

static void mount_on(const char *kind, const char *target, const char *options)
{
	check(mount(kind, target, kind, MS_NOSUID | MS_NODEV | MS_NOEXEC, options) == 0, target);
}

/* What a step is given by docker build: namespaces, an overlay, /proc, /sys, /dev, few rights. */
static void step(const char *root)
{
	static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
	char options[4096], from[64], to[64];
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
	check(chdir(root) == 0, root);
	snprintf(options, sizeof options, "lowerdir=lower,upperdir=upper,workdir=work,index=off");
	check(mount("overlay", "merged", "overlay", 0, options) == 0, "overlay");
	check(chdir("merged") == 0, "merged");
	mount_on("proc", "proc", NULL);
	mount_on("sysfs", "sys", NULL);
	check(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k") == 0, "dev");
	check(mkdir("dev/pts", 0755) == 0 && mkdir("dev/shm", 0755) == 0, "dev");
	check(mkdir("dev/mqueue", 0755) == 0, "dev");
	mount_on("devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=0620");
	mount_on("tmpfs", "dev/shm", "mode=1777,size=65536k");
	mount_on("mqueue", "dev/mqueue", NULL);
	for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) {
		snprintf(from, sizeof from, "/dev/%s", devices[i]);
		snprintf(to, sizeof to, "dev/%s", devices[i]);
		close(open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
		check(mount(from, to, NULL, MS_BIND, NULL) == 0, to);
	}
	check(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
	check(umount2(".", MNT_DETACH) == 0, "umount");
	execl("/bin/sh", "sh", "-c", ":", NULL);
	check(0, "/bin/sh");
}

static void steps(int count, const char *root)
{
	int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
	while (count--) {
		int state;
		pid_t child = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
		check(child >= 0, "clone");
		if (child == 0)
			step(root);
		check(waitpid(child, &state, 0) == child && state == 0, "the step");
	}
}

int main(int argc, char **argv)
{
	struct timespec begin, end;
	const char *what = argc > 1 ? argv[1] : "";
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (argc == 3 && strcmp(what, "list") == 0)
		each(AT_FDCWD, argv[2], "", 0);
	else if (argc == 4 && strcmp(what, "layer") == 0)
		make_layer(argv[2], argv[3]);
	else if (argc == 4 && strcmp(what, "unpack") == 0)
		unpack(argv[2], argv[3]);
	else if (argc == 4 && strcmp(what, "steps") == 0)
		steps(atoi(argv[2]), argv[3]);
	else
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.6f\n", end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9);
	return 0;
}
