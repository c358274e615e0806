"""The gallery on a Milvus cluster: one collection a gallery, the same results as the embedded one."""
