import re

import pytest

from ftbnn_jax.deploy.c import options
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("real_bits", 5, "--real_bits=5: must be one of 8, 16, 32"),
        ("real_bits", True, "--real_bits=True: must be one of 8, 16, 32"),
        ("target", "cortexm", "--target='cortexm': must be one of host, cortex-m"),
        ("prefix", "for", "--prefix='for': must be a C identifier"),
        ("fraction_bits", 3, "fraction_bits=3: must be None, or a whole number from 4 to 30"),
        ("fraction_bits", 31, "fraction_bits=31: must be None"),
        ("fraction_bits", 8.0, r"fraction_bits=8\.0: must be None"),
    ],
)
def test_a_value_that_no_program_has_is_refused(field, value, words):
    with pytest.raises(UserError, match=words):
        Options(**{field: value})


@pytest.mark.parametrize(
    "given", [Options(), Options(4), Options(30, prefix="Net_2"), Options(None, 8, (7, -3))]
)
def test_options_are_read_back_from_what_the_header_defines(given):
    macros = given.definitions().items()
    text = "".join(f"#define {given.prefix.upper()}_{name} {value}\n" for name, value in macros)
    # Those of another network in the same file are not its own.
    other = "#define OTHER_MOST_FRACTION_BITS 9\n"
    assert options.read(f"{other}{text}int {given.prefix}_init(void);\n") == given


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "no header of an exported C program"),
        ("#define A_REAL_BITS many\nint A_init(", "REAL_BITS many: a number expected"),
        ('#define A_TARGET "pdp-11"\nint A_init(', "--target='pdp-11': must be one of"),
    ],
)
def test_a_header_that_no_export_wrote_is_refused(header, words):
    with pytest.raises(UserError, match=re.escape(words)):
        options.read(header)
