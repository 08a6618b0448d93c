"""Remote systems that run jobs: submit, look, cancel, result, find; blocking, one adapter for each."""
