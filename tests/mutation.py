"""Mutation testing of the numerical modules: which changes of the code does no test notice?

    python -m tests.mutation                      a night: every mutant of every module
    python -m tests.mutation losses muon          these modules
    python -m tests.mutation --sample=40          at most 40 mutants of each, chosen at random

Cosmic Ray makes the mutants, one operator or number at a time, in copies of the repository, and
runs the tests named here on each. Prints the share of mutants that a test notices and a diff for
each of the others; those in messages, and those that compute the same, may stay.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# By module, the tests that compare it with another formulation; its users' tests would take hours.
TESTS = {
    "optim/losses": ["optim_losses_test"],
    "optim/schedules": ["optim_schedules_test"],
    "optim/adafactor": ["optim_golden_test", "optim_optimizers_test"],
    "optim/muon": ["optim_golden_test", "optim_layouts_test"],
    "data/order": ["data_order_test", "data_exact_order_test"],
    "models/attention": [
        "attention_backends_test",
        "models_stochastic_test",
        "models_vit_test",
    ],
    "models/positions": ["models_positions_test"],
    "models/resize": ["models_resize_test", "adapt_golden_test"],
    "checkpoints/digests": ["checkpoints_store_test"],
    "scaling/laws": ["scaling_laws_test", "scaling_fitting_test"],
    "scaling/solver": ["scaling_fitting_test", "scaling_intervals_test"],
    "scaling/profile": ["scaling_intervals_test"],
}
# One replacement of each kind: a multiplication that is a division shows what one that is a
# remainder would show. A union of types is not a bitwise operation.
OPERATORS = (
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_FloorDiv|Pow_Mul"
    "|BitXor_BitAnd|BitAnd_BitXor|LShift_RShift|RShift_LShift)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)"
    "|ReplaceUnaryOperator_(Delete_USub|Delete_Not|Delete_Invert)"
    "|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd"
    "|NumberReplacer|ZeroIterationForLoop"
)
TIMEOUT_SECONDS = 180  # A mutant may loop for ever.


def configuration(module: str) -> str:
    """Returns Cosmic Ray's configuration for a module, as TOML."""
    tests = " ".join(f"tests/{name}.py" for name in TESTS[module])
    command = (
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not (slow or campaign)' {tests}"
    )
    return f"""
[cosmic-ray]
module-path = "vit_jax/{module}.py"
timeout = {TIMEOUT_SECONDS}
excluded-modules = []
test-command = {json.dumps(command)}
distributor.name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = [{json.dumps(f"^(?!core/({OPERATORS})$)")}]
"""


def run(module: str, copy: pathlib.Path, sample: int) -> tuple[int, list[str]]:
    """Tests a module's mutants.

    Args:
      module: a key of `TESTS`.
      copy: of the repository, in which they are made.
      sample: how many, at most; 0: all.

    Returns:
      How many were tested, and for each that no test noticed what it was, with a diff.
    """
    (copy / "mutation.toml").write_text(configuration(module))
    session = copy / f"{module.replace('/', '-')}.sqlite"
    environment = {
        **os.environ,
        # Two mutants of one length, written within a second, would share a compiled file.
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(copy.parent / "cache"),  # Mutants' programs are of no further use.
    }

    def call(program: str, *words: str) -> None:
        program = str(pathlib.Path(sys.executable).parent / program)
        subprocess.run([program, *words], cwd=copy, env=environment, check=True)

    call("cosmic-ray", "init", "mutation.toml", session.name, "--force")
    call("cr-filter-operators", session.name, "mutation.toml")
    lines = (copy / f"vit_jax/{module}.py").read_text().splitlines()
    with sqlite3.connect(session) as database:
        skipped = {job for (job,) in database.execute("select job_id from work_results")}
        mutants = []
        for job, row, column in database.execute(
            "select job_id, start_pos_row, start_pos_col from mutation_specs "
            "order by start_pos_row, start_pos_col, operator_name, occurrence"
        ):
            # Cosmic Ray takes the bare `*` among a function's parameters for a product.
            if lines[row - 1].startswith("*,", column):
                skipped.add(job)
            elif job not in skipped:
                mutants.append(job)
        left_out = random.Random(0).sample(mutants, max(0, len(mutants) - sample)) if sample else []
        for table in ("mutation_specs", "work_items"):
            rows = ((job,) for job in [*skipped, *left_out])
            database.executemany(f"delete from {table} where job_id = ?", rows)
        database.execute("delete from work_results")
    call("cosmic-ray", "baseline", "mutation.toml")
    call("cosmic-ray", "exec", "mutation.toml", session.name)
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "select start_pos_row, operator_name, diff from mutation_specs "
            "join work_results using (job_id) where test_outcome = 'SURVIVED' "
            "order by start_pos_row"
        ).fetchall()
        (tested,) = database.execute("select count(*) from work_results").fetchone()
    return tested, [f"{module}.py:{row} {name}\n{diff}" for row, name, diff in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    modules = [m for m in TESTS if not args.modules or m.split("/")[1] in args.modules]
    with tempfile.TemporaryDirectory() as place:
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        copies: queue.Queue[pathlib.Path] = queue.Queue()
        for worker in range(args.workers):
            copy = pathlib.Path(place) / str(worker) / "main"
            for name in files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            if (ROOT.parent / "shared").exists():
                (copy.parent / "shared").symlink_to(ROOT.parent / "shared")
            copies.put(copy)

        def work(module: str) -> tuple[str, int, list[str]]:
            copy = copies.get()
            try:
                return module, *run(module, copy, args.sample)
            finally:
                copies.put(copy)

        with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
            for module, tested, survivors in pool.map(work, modules):
                print("\n".join(survivors))
                noticed = tested - len(survivors)
                share = f"{noticed / tested:.0%}" if tested else "no mutants"
                print(f"{module}: {noticed} of {tested} mutants noticed, {share}", flush=True)


if __name__ == "__main__":
    main()
