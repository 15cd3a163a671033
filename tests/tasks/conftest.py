import jax
import pytest


@pytest.fixture
def x64():
    """Double precision for one test; the flag exists in every version of jax, the context managers do not."""
    with _config("jax_enable_x64", True):
        yield


class _config:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def __enter__(self):
        self.before = jax.config.values[self.name]
        jax.config.update(self.name, self.value)

    def __exit__(self, *error):
        jax.config.update(self.name, self.before)
