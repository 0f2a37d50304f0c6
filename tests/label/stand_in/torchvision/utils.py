"""The two names that MONAI Label imports."""


def make_grid(*args, **kwargs):
    raise NotImplementedError("torchvision is not installed in this environment")


def save_image(*args, **kwargs):
    raise NotImplementedError("torchvision is not installed in this environment")
