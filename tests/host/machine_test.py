"""What commands take from the environment."""

import jax
import jax.numpy as jnp
import pytest

from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine


@pytest.mark.parametrize(
    ("text", "expected"), [(None, 5), ("", 5), ("3", 3), ("999999999", 999_999_999)]
)
def test_a_number_of_the_environment(monkeypatch, text, expected):
    monkeypatch.delenv("N", raising=False) if text is None else monkeypatch.setenv("N", text)
    assert machine.environment_number("N", 5) == expected


@pytest.mark.parametrize("text", ["two", "-1", "0", "1.5", "9" * 50, "1_0"])
def test_what_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("N", text)
    with pytest.raises(UserError, match=f"^N={text}: must be a whole number of at least 1"):
        machine.environment_number("N", 5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--xla_no=1", "Unknown flag in XLA_FLAGS: --xla_no=1"),
        ("--xla_cpu_enable_fast_math=maybe", "Couldn't interpret value maybe"),
        ("no", 'Could not open file "no"'),
    ],
)
def test_flags_that_xla_would_end_the_process_for(monkeypatch, flags, reason):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UserError) as error:
        machine.configure_jax()
    assert str(error.value).startswith(f"XLA_FLAGS={flags}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'x': y (set JAX_"), AssertionError()]
)
def test_a_device_that_is_not_there(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "x")
    with pytest.raises(UserError, match=r"^JAX_PLATFORMS=x.*: no such device here .*JAX_PLATFORMS=cpu"):
        machine.check_devices()


@pytest.mark.parametrize("cache", ["/dev/null/x", "~nobody123/x", "foo://x"])
def test_a_cache_that_cannot_be_written(cache):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", cache)
    try:
        with pytest.raises(UserError, match=f"^JAX_COMPILATION_CACHE_DIR={cache}: must be a directory"):
            machine.configure_jax()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_types_of_the_program_around_are_left_alone():
    inner = machine.in_32_bits(lambda: jnp.zeros(3).dtype)
    outer = machine.in_32_bits(lambda: (inner(), jnp.arange(3).dtype))
    with jax.enable_x64(True):
        assert outer() == (jnp.float32, jnp.int32)
        assert jnp.zeros(3).dtype == jnp.float64
