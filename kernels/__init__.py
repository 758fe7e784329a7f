"""Triton kernels, one module per op family; installed as `pytorch_ext.kernels`."""

if __name__ == "kernels":  # the repository's root is on sys.path: not the PyPI package of that name
    raise ImportError("this is the source folder of pytorch_ext.kernels, not the package `kernels`")
