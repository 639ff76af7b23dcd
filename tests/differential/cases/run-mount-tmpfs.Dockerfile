FROM busybox
RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/file && cp /scratch/file /kept
