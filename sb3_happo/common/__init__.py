"""Parts that the algorithms share: policies, critics, buffers and training loops."""
