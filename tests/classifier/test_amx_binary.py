"""The compiled AMX library itself, bit by bit beside plain C for its instructions; where there is no AMX, emulated.

Other tests compile the same C without tile instructions. This is the library that users get: its encodings, its tile
configuration, and which thread has one.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.engine.cpu.kernels import KERNELS
from polyhead.precision import Precision
from tests.classifier import amx_calls
from tests.classifier.amx_calls import Bits
from tests.classifier.amx_emulator import LIBRARY, OnAMX, compile_emulator, process_on_amx
from tests.tiny import write_tiny_checkpoint

HAS_AMX = torch.cpu._is_amx_tile_supported()

pytestmark = [
    pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the library needs AVX-512 bf16"),
    pytest.mark.skipif(KERNELS is None or not LIBRARY.exists(), reason="the kernels were not compiled"),
]
emulated_only = pytest.mark.skipif(HAS_AMX, reason="this processor has AMX, so its own instructions run")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The compiled emulator; None if the processor needs none."""
    return None if HAS_AMX else compile_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="module")
def on_amx(emulator: Path | None) -> Iterator[OnAMX]:
    """A process for all tests."""
    with process_on_amx(emulator) as run:
        yield run


def assert_same_bits(found: Bits, wanted: Bits) -> None:
    """Neither is empty, and not one bit differs."""
    assert found
    for place, (a, b) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"result {place}")


def test_the_library_passes_its_checks_at_load(on_amx: OnAMX) -> None:
    """The library asks for tiles, gets them, and its small products and attention are PyTorch's."""
    assert on_amx(amx_calls.loaded) == [
        "the CPU engine computes its products on AMX", "the CPU engine computes its attention on AMX"
    ]  # fmt: skip


# -- Bits ---------------------------------------------------------------------------------------------------------

# Few values on each side of what one tile, one block of 32 rows and one part of the inner dimension hold.
SHAPES = [(1, 64, 64), (16, 832, 64), (17, 64, 192), (32, 1600, 64), (96, 768, 64)]
RANDOM = np.random.default_rng(0)
SHAPES += [(int(RANDOM.integers(1, 80)), *(64 * RANDOM.integers(1, (18, 4))).tolist()) for _ in range(5)]


@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_products_have_the_bits_of_plain_c(
    on_amx: OnAMX, amx_stand_in: Path, rows: int, inner: int, columns: int
) -> None:
    """For rows, steps and parts that fill blocks or do not, and for every finish."""
    wanted = amx_calls.products(amx_stand_in, rows, inner, columns)
    assert_same_bits(on_amx(amx_calls.products, LIBRARY, rows, inner, columns), wanted)


def test_denormals_are_zero_and_nan_stays_in_its_row(on_amx: OnAMX, amx_stand_in: Path) -> None:
    """The processor takes denormals for zero and makes none; an infinity or NaN spoils its row alone."""
    wanted = amx_calls.small_products(amx_stand_in)
    assert wanted[1][:2].any(1).all()
    assert not wanted[1][2:].any()
    assert (wanted[0] & 0x7FFFFFFF == 0).any()
    assert_same_bits(on_amx(amx_calls.small_products, LIBRARY), wanted)


@pytest.mark.parametrize(("rows", "width", "hidden"), [(33, 64, 832), (40, 832, 128), (96, 128, 256)])
def test_mlps_have_the_bits_of_plain_c(on_amx: OnAMX, amx_stand_in: Path, rows: int, width: int, hidden: int) -> None:
    """In one pass and on two threads."""
    wanted = amx_calls.mlps(amx_stand_in, rows, width, hidden)
    assert_same_bits(on_amx(amx_calls.mlps, LIBRARY, rows, width, hidden), wanted)
    assert_same_bits(wanted[:3], wanted[3:])


@pytest.mark.parametrize("seed", range(3))
def test_attention_has_the_bits_of_plain_c(on_amx: OnAMX, amx_stand_in: Path, seed: int) -> None:
    """On one thread and on two."""
    assert_same_bits(on_amx(amx_calls.attentions, LIBRARY, seed), amx_calls.attentions(amx_stand_in, seed))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, whose widths are multiples of 64."""
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    write_tiny_checkpoint(path, "hidden_state_concat", n_embd=128, n_head=2, n_layer=2)
    return path


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_engines_have_the_bits_of_plain_c(
    on_amx: OnAMX, amx_stand_in: Path, checkpoint: Path, precision: Precision
) -> None:
    """A whole engine, in a batch and alone."""
    found = on_amx(amx_calls.logits, LIBRARY, checkpoint, precision)
    assert_same_bits(found, amx_calls.logits(amx_stand_in, checkpoint, precision))
    assert_same_bits(found[:1], found[1:])


# -- Memory and state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 15, 16, 33, 48])
def test_nothing_is_read_or_written_beyond_a_tensor(on_amx: OnAMX, rows: int) -> None:
    """A tile has 16 rows, also where the tensor has fewer."""
    assert on_amx(amx_calls.at_the_edge, rows)


OTHER_CONFIG = bytes([1, *[0] * 15, *[48, 0] * 8, *[0] * 16, *[7] * 8, *[0] * 8])  # 7 rows of 48 bytes


@emulated_only
@pytest.mark.parametrize("config", [bytes(64), OTHER_CONFIG], ids=["none", "oneDNN's"])
def test_a_call_leaves_the_tiles_as_they_were(on_amx: OnAMX, config: bytes) -> None:
    """oneDNN keeps its configuration from call to call; without one, tiles are released."""
    assert on_amx(amx_calls.left_configs, config) == [config] * 3


@emulated_only
@pytest.mark.parametrize("number", [1, 2])
def test_each_thread_configures_and_releases_tiles(on_amx: OnAMX, number: int) -> None:
    """Work for two threads is divided, and the tiles of one are not those of the other."""
    assert on_amx(amx_calls.configs_of, number) == (2 * number, 2 * number)


@emulated_only
def test_a_loaded_tile_is_used_twice(on_amx: OnAMX) -> None:
    """Per 32 x 32 sums and step 4 loads feed 4 products, and per part of the inner dimension sums move once."""
    rows, columns, parts = 96, 64, 2
    blocks = rows // 32 * columns // 32
    counts = on_amx(amx_calls.counts_of, rows, 1536, columns)
    assert counts["tdpbf16ps"] == blocks * 4 * 48
    assert counts["tileloadd"] + counts["tileloaddt1"] == blocks * 4 * (48 + parts - 1)
    assert counts["tilestored"] == (blocks * parts + 1) * 4  # the first four hold nothing


# -- What the processor refuses -----------------------------------------------------------------------------------


@emulated_only
@pytest.mark.parametrize(
    ("features", "is_granted", "answer"),
    [
        (0x3400000, True, 0), (0x3400000, False, 2), (0x3000000, True, 1), (0x2400000, True, 1), (0x1400000, True, 1)
    ],
)  # fmt: skip
def test_the_library_asks_for_all_that_it_uses(on_amx: OnAMX, features: int, is_granted: bool, answer: int) -> None:
    """amx_bf16, amx_tile and amx_int8, and Linux' consent."""
    assert on_amx(amx_calls.requests, features, is_granted) == answer


# What a process does, and the line on stderr, without the place. Tiles have 16 rows of 64 bytes, but tile 1 has 8 rows,
# tile 2 has 32 bytes, and tile 7 is not configured.
MISUSES = {
    "/* does not ask */": "ldtilecfg: #UD: the process has not asked Linux for tiles",
    'asm("tilezero %tmm7");': "tilezero: #UD: the tile is not configured",
    'asm("tilerelease; tilezero %tmm0");': "tilezero: #UD: no tiles are configured on this thread",
    "config[0] = 2; load();": "ldtilecfg: #GP: unknown palette",
    "config[15] = 1; load();": "ldtilecfg: #GP: a reserved byte is not 0",
    "config[32] = 1; load();": "ldtilecfg: #GP: a reserved byte is not 0",
    "config[56] = 1; load();": "ldtilecfg: #GP: a reserved byte is not 0",
    "config[48] = 17; load();": "ldtilecfg: #GP: more than 16 rows",
    "config[16] = 65; load();": "ldtilecfg: #GP: more than 64 bytes per row",
    "config[48] = 0; load();": "ldtilecfg: #GP: a tile with rows or bytes alone",
    'asm(".byte 0xc4, 0xe2, 0x62, 0x5c, 0xc0");': "tdpbf16ps: #UD: a tile is named twice",
    'asm("tdpbf16ps %tmm3, %tmm1, %tmm0");': "tdpbf16ps: #UD: sums and left operand have other numbers of rows",
    'asm("tdpbusd %tmm2, %tmm3, %tmm0");': "tdpbusd: #UD: sums and right operand have other numbers of columns",
    'asm("tdpbusd %tmm3, %tmm2, %tmm0");': "tdpbusd: #UD: left operand's columns are not the right operand's rows",
    'asm("tdpbssd %tmm3, %tmm4, %tmm0");': "an instruction: #UD: it is not emulated, and this processor lacks it",
    'asm("ud2");': "an instruction: #UD: it is not emulated, and this processor lacks it",
}
PROGRAM = """
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
static uint8_t config[64] = {1, 0, [16] = 64, 0, 64, 0, 32, 0, 64, 0, 64, 0, 64, 0, 64, 0, 0, 0,
                             [48] = 16, 8, 16, 16, 16, 16, 16, 0};
#define load() asm volatile("ldtilecfg %0" ::"m"(config))
int main(int count, char **arguments) {
    int number = atoi(arguments[count - 1]);
    if (number) syscall(158, 0x1023, 18);
    load();
    switch (number) {
    CASES
    }
    asm volatile("tilezero %tmm0; tilerelease");
    return 0;
}
"""


@pytest.fixture(scope="module")
def misusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that misuses tiles in the way whose number it is given."""
    folder = tmp_path_factory.mktemp("misuse")
    cases = "\n".join(f"case {number}: {code} break;" for number, code in enumerate(MISUSES))
    (folder / "misuse.c").write_text(PROGRAM.replace("CASES", cases), encoding="utf-8")
    subprocess.run(["cc", "-rdynamic", "-o", folder / "misuse", folder / "misuse.c"], check=True)
    return folder / "misuse"


@emulated_only
@pytest.mark.parametrize("number", range(len(MISUSES) + 1))
def test_what_the_processor_would_refuse_ends_the_process(emulator: Path, misusing: Path, number: int) -> None:
    """The emulator is as strict as the manual, so a library that passes has done none of this."""
    done = subprocess.run(
        [misusing, str(number)], env={"LD_PRELOAD": str(emulator)}, capture_output=True, text=True, check=False
    )
    if number == len(MISUSES):
        assert (done.returncode, done.stderr) == (0, "")
        return
    fault = list(MISUSES.values())[number]
    assert done.returncode == -signal.SIGABRT
    assert re.sub(r" at main\+0x[0-9a-f]+", "", done.stderr) == f"AMX emulator: {fault}\n"
