"""What becomes of a built image: stores, registries, archives and folders."""
