"""The model workers: prompt encoder, sampler, video decoder. They know nothing of HTTP, jobs or SQL."""
