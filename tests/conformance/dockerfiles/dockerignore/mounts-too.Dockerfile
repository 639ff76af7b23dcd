# A bind mount of the context shows what isn't excluded.
# expect: file /v "no\n"
FROM busybox
RUN --mount=target=/m if [ -e /m/ignored.log ]; then echo yes; else echo no; fi > /v
