"""What the gates' cases reach: the launch tables whole, each option, each pair of options."""

import inspect
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mkd_fast.benchmarks.results import read_rows
from mkd_fast.kernels import gate_cases, gates
from mkd_fast.kernels.covering import covering_rows
from mkd_fast.kernels.launch import Launch, LaunchConfig, dense_kd_config, sparse_kd_config

ROOT = Path(__file__).parents[2]
WARP_SIZES = (32, 64)
COLUMNS = {2**k + more for k in range(16) for more in (-1, 0, 1)} - {0} | {250_002}
FLOAT_BYTES, STATE_BYTES = (2, 4), (1, 2, 4)


def table(warp_size: int) -> set[tuple[str, LaunchConfig]]:
    """Every launch that the tables can choose."""
    found = set()
    for num_columns, hidden_bytes in itertools.product(COLUMNS, STATE_BYTES):
        sizes = {"hidden_bytes": hidden_bytes, "warp_size": warp_size}
        for logit_bytes in itertools.product(FLOAT_BYTES, FLOAT_BYTES):
            for is_aligned, is_costly in itertools.product((True, False), repeat=2):
                config = dense_kd_config(
                    num_columns, logit_bytes=logit_bytes, is_aligned=is_aligned,
                    is_costly=is_costly, **sizes,
                )  # fmt: skip
                found.add((f"dense_kd_{config.kernel}", config))
        for logit_size in FLOAT_BYTES:
            found.add(
                ("sparse_kd_rows", sparse_kd_config(num_columns, logit_bytes=logit_size, **sizes))
            )
    return found


def main_launches(warp_size: int) -> list[Launch]:
    launches = itertools.chain.from_iterable(c.launches(warp_size) for c in gate_cases.CASES)
    return [launch for launch in launches if launch.is_register_bound]


def config_of(launch: Launch) -> tuple[str, LaunchConfig]:
    name, arguments = launch.kernel.__name__, launch.arguments
    config = LaunchConfig(
        "tile" if name.endswith("tile") else "rows", arguments.get("ROWS", 1), arguments["BLOCK"],
        launch.num_warps, arguments["HIDDEN_ROWS"], arguments["HIDDEN_BLOCK"],
    )  # fmt: skip
    return name, config


@pytest.mark.parametrize("warp_size", WARP_SIZES)
def test_every_launch_that_the_tables_can_choose_is_compiled(warp_size):
    compiled = {config_of(launch) for launch in main_launches(warp_size)}
    assert compiled == table(warp_size)


BOTH = {True, False}
DIVERGENCES = {
    "forward_kl", "reverse_kl", "jeffreys", "jsd", "skew_forward_kl", "skew_reverse_kl", "zero",
    "tvd", "alpha_beta", "alpha_beta_alpha_0", "alpha_beta_beta_0", "alpha_beta_sum_0",
    "alpha_beta_0_0",
}  # fmt: skip
FLAGS: dict[str, dict[str, set[Any]]] = {
    "dense_kd_tile": {"DIVERGENCE": DIVERGENCES | {"logit_mse"}},
    "dense_kd_rows": {
        "DIVERGENCE": DIVERGENCES | {"logit_mse"},
        "CENTRE_SWEEP": BOTH,
        "GROUP": {4, 8},
        "LAYOUT": {"whole", "shifted", "scattered"},
    },
    "sparse_kd_rows": {
        "DIVERGENCE": DIVERGENCES,
        "TAIL": {"bucket", "renormalize", "drop", "uniform", "sampled", "packed"},
        "SUM_OUTSIDE": {"never", "always", "where they are few"},
        "EACH": BOTH,
        "GROUP": {4, 8},
        "LAYOUT": {"whole", "shifted", "scattered"},
    },
}


def flags_of(launch: Launch) -> dict[str, Any]:
    """What of a launch the compiler specialises on, but for its sizes."""
    arguments, hidden = launch.arguments, launch.arguments["hidden"]
    return arguments | {
        "has gradient": arguments["grad"] is not None,
        "has labels": arguments["tokens"].labels is not None,
        "has a softcap": arguments["student"].softcap is not None,
        "is cosine": hidden.smallest_square is not None,
        "bytes of a teacher's state": hidden.layers[0].teacher.element_size(),
    }


@pytest.mark.parametrize("kernel", FLAGS)
def test_every_value_of_every_flag_is_compiled(kernel):
    launches = [flags_of(x) for x in main_launches(32) if x.kernel.__name__ == kernel]
    common = dict.fromkeys(
        ("OWN_SUM", "PER_TOKEN", "CE_GRAD", "has gradient", "has labels", "has a softcap",
         "is cosine"), BOTH,
    )  # fmt: skip
    expected = FLAGS[kernel] | common | {"bytes of a teacher's state": set(STATE_BYTES)}
    assert {flag: {launch[flag] for launch in launches} for flag in expected} == expected


def test_pairs_of_options_are_all_compiled():
    options = {"a": range(5), "b": range(4), "c": range(3), "d": range(2), "e": range(2)}
    rows = list(covering_rows(options))
    assert rows == list(covering_rows(options))
    for one, other in itertools.combinations(options, 2):
        found = {(row[one], row[other]) for row in rows}
        assert found == set(itertools.product(options[one], options[other]))
    assert len(rows) <= 24  # 20 pairs of a and b; all combinations were 240


def test_pairs_are_the_same_in_every_process():
    """An interrupted run of the gates goes on with what it has compiled before."""
    script = (
        "import runpy; f = runpy.run_path(r'{}')['covering_rows']; print(list(f({!r})))".format(
            inspect.getfile(covering_rows), {name: [0, 1, 2] for name in "abcdefgh"}
        )
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(printed) == 1


def test_paired_cases_are_few_and_on_every_target():
    targets = ("one", "other")
    cases = list(gate_cases.paired_cases(targets))
    assert len(cases) < 400
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    for kind in (gate_cases.Case, gate_cases.SparseCase):
        of_kind = [case for case in cases if type(case) is kind]
        seen = {(case.divergence, case.target) for case in of_kind}
        assert seen >= set(itertools.product(("forward_kl", "jsd", "alpha_beta"), targets))
        assert {case.student for case in of_kind} == {
            torch.float32, torch.bfloat16, torch.float16
        }  # fmt: skip


def test_the_committed_table_is_of_these_cases():
    """And nothing in it spills: scalar spills are moves between registers, of gfx942 alone."""
    (path,) = (ROOT / "benchmarks" / "results" / "gates").glob("triton-*.csv")
    table = read_rows(path)
    listed = [(row["name"], row["target"], int(row["num_warps"])) for row in table]
    assert listed == list(gates.planned(gate_cases.CASES))
    assert {row["name"]: row["spill_bytes"] for row in table if row["spill_bytes"] != "0"} == {}
    assert {row["target"] for row in table if row["scalar_spills"] != "0"} <= {"gfx942"}
