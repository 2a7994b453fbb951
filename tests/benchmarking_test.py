"""The benchmark command: arithmetic, verdicts, turns, and its contenders at toy size."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

from tests.commands import call
from tests.references import reference as library
from vit_jax.benchmarking import hlo, trace, weights
from vit_jax.benchmarking.case import Case, parse_mesh
from vit_jax.benchmarking.common import Common, Reference
from vit_jax.benchmarking.contenders import Preparation
from vit_jax.benchmarking.flax_peer import is_plain
from vit_jax.benchmarking.process import Worker, WorkerError
from vit_jax.benchmarking.profiled_step import longest_operations
from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.run import Effort, _judge, benchmark
from vit_jax.benchmarking.samples import Spread, rates, ratios
from vit_jax.benchmarking.sweep import Grid
from vit_jax.benchmarking.table import HEADINGS, markdown_table, ratio_lines, rows
from vit_jax.benchmarking.turns import WARM_UP_STEPS, Turns, steps_of_turn
from vit_jax.benchmarking.verdict import compare
from vit_jax.benchmarking.worker import error_kind, make_contender

TOY = Case("mu/16", image_size=32, batch_size=4, num_classes=10)
LOGITS = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)


# ------------------------------------------------------------------------------------ arithmetic


def test_rates_and_ratios_are_medians_with_ranges():
    assert rates(8, [1.0, 4.0, 2.0]) == Spread(4.0, 2.0, 8.0, 3)
    # Round by round: 3 / 1, 4 / 2, 5 / 5.
    assert ratios([1.0, 2.0, 5.0], [3.0, 4.0, 5.0]) == Spread(2.0, 1.0, 3.0, 3)


def test_a_turn_lasts_as_long_as_asked():
    assert [steps_of_turn(s, 0.5) for s in (2.0, 0.5, 0.2, 1e-6, 0.0)] == [1, 1, 3, 100, 1]


def measured(**changes):
    """A result of a train step of 2 s and a forward pass of 0.5 s."""
    fields = {
        "preparation": Preparation("jax", "NVIDIA H200", "gpu", 1.0, 2.0, 3.0),
        "train_flops_per_image": 1000,
        "train_seconds": [2.0, 2.0, 4.0],
        "forward_seconds": [0.5],
        "matmul_flops_per_second": 4000.0,
        "steps_bytes": 2_000_000,
    }
    return Result("vit_jax", TOY, **fields | changes)


def test_flops_shares_and_mfu():
    result = measured()
    assert result.train_flops_per_second() == 2 * 1000  # Two images per second.
    assert result.matmul_share() == 0.5
    assert result.mfu() == pytest.approx(2000 / 989e12)
    two = dataclasses.replace(TOY, mesh=(2, 1, 1))
    assert dataclasses.replace(result, case=two).mfu() == pytest.approx(1000 / 989e12)
    on_cpu = Preparation("jax", "cpu", "cpu", 1.0)
    simulated = dataclasses.replace(result, case=two, preparation=on_cpu)
    assert simulated.mfu() is None and simulated.matmul_share() == 0.5


def test_what_is_not_ok_has_no_throughput():
    wrong = measured(status="WRONG", message="loss 7")
    assert wrong.train_rate() is None and wrong.mfu() is None and wrong.forward_rate() is None
    (row,) = rows([wrong])
    cells = dict(zip(HEADINGS, row, strict=True))
    assert cells["train img/s"] == cells["GFLOP/s"] == "-" and cells[""] == "WRONG: loss 7"
    assert ratio_lines([measured(), Result("timm", TOY, status="WRONG")]) == []


def test_table_and_json():
    peer = Result("timm", TOY, train_seconds=[3.0, 4.0, 4.0], forward_seconds=[1.0],
                  steps_bytes=4_000_000)  # fmt: skip
    (line,) = ratio_lines([measured(), peer])
    assert line == "vit_jax / timm: train 1.5 (1 to 2), forward 2 (2 to 2), memory 0.5"
    assert "| vit_jax | 2 (1 to 2) | 8 (8 to 8) | 2 |" in markdown_table([measured(), peer])
    content = json.loads(json.dumps(measured().to_json()))
    assert content["train_images_per_second"] == {"median": 2, "low": 1, "high": 2, "count": 3}
    assert Case.from_json(content["case"]) == TOY


# -------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("losses", "outputs", "problem"),
    [
        ([2.0, 1.0, 0.5], LOGITS, ""),
        ([2.0, 1.001, 0.5], LOGITS, ""),  # 5e-4 of the first loss.
        ([2.0, 1.003, 0.5], LOGITS, "loss 1.003 before update 2, reference 1"),
        ([2.0, 1.0, 0.4], LOGITS, "loss 0.4 before update 3, reference 0.5"),
        ([2.0, float("nan"), 0.5], LOGITS, "loss nan"),
        ([2.0, 1.0, 0.5, 0.1], LOGITS, ""),  # The reference made fewer updates.
        ([2.0, 1.0, 0.5, 3.0], LOGITS, "loss grew from 2 to 3"),
        ([2.0, 1.0, 0.5], LOGITS + 0.1, "outputs differ by 0.025 of the largest logit"),
        ([2.0, 1.0, 0.5], LOGITS * np.nan, "outputs differ by nan"),
    ],
)
def test_verdict(losses, outputs, problem):
    verdict = compare(
        "float32", losses=losses, reference_losses=[2.0, 1.0, 0.5], outputs=outputs,
        reference_outputs=LOGITS,
    )  # fmt: skip
    assert verdict.problem.startswith(problem) and bool(verdict.problem) == bool(problem)


def test_a_wrong_loss_is_reported_as_wrong(tmp_path):
    np.save(tmp_path / "outputs.npy", LOGITS)
    result = measured(losses=[2.0, 1.9])
    _judge(result, Reference("flax", [2.0, 1.5], LOGITS), tmp_path / "outputs.npy")
    assert result.status == "WRONG" and "loss 1.9 before update 2" in result.message
    assert result.train_rate() is None and result.verdict.loss_difference == pytest.approx(0.2)
    unchecked = measured(losses=[2.0])
    _judge(unchecked, Reference("flax", [], LOGITS, "out of memory: x"), None)
    assert unchecked.status == "failed" and "no reference" in unchecked.message


def test_kinds_of_errors():
    class OutOfMemoryError(Exception):
        """As of PyTorch."""

    assert error_kind(ImportError("No module named 'timm'")) == "not installed"
    assert error_kind(RuntimeError("RESOURCE_EXHAUSTED: 3 GB")) == "out of memory"
    assert error_kind(OutOfMemoryError("CUDA out of memory.")) == "out of memory"
    assert error_kind(MemoryError()) == "out of memory"
    assert error_kind(ValueError("x")) == "failed"


# ----------------------------------------------------------------------------------------- turns


class FakeWorker(Worker):
    """Answers at once, and logs its steps; fails at its n-th answer."""

    def __init__(self, name, log, fails_at=None):
        self.name, self.log, self.fails_at, self.answers = name, log, fails_at, 0
        self.timeouts = []

    def tell(self, task, **arguments):
        self.task, self.steps = task, arguments.get("steps", 0)

    def hear(self, *, timeout_seconds):
        self.answers += 1
        self.timeouts.append(timeout_seconds)
        if self.answers == self.fails_at:
            raise WorkerError("out of memory", "3 GB")
        if self.task == "train":
            self.log.append(self.name)
        return {
            "prepare": {"software": "", "device": "cpu", "platform": "cpu", "init_seconds": 1.0},
            "train": {"seconds": 0.2 * self.steps, "losses": [1.0] * self.steps},
            "reset_peak": 70,
            "peak": {"resident": 50, "device": None},
        }[self.task]

    def close(self, *, kill=False):
        self.log.append(f"{self.name} ends")


@pytest.mark.parametrize("at_once", [False, True])
def test_contenders_take_turns_and_one_that_fails_drops_out(at_once):
    results, log = [Result(name, TOY) for name in ("vit_jax", "timm", "flax")], []
    left = 90.0
    turns = Turns(results, timeout=lambda share=2 / 3: share * left, report=lambda line: None)
    fails_at = 1 + WARM_UP_STEPS + 3  # Preparation, warm-up, reset of the peak; the second round.
    workers = {0: FakeWorker("A", log), 1: FakeWorker("B", log, fails_at), 2: FakeWorker("C", log)}
    turns.add(workers, at_once=at_once)
    turns.train(rounds=3, turn_seconds=0.5, beside=lambda: log.append("peak"))
    warm_up = ["A"] * WARM_UP_STEPS + ["B"] * WARM_UP_STEPS + ["C"] * WARM_UP_STEPS
    first, second, third = ["peak", *"ABC"], ["peak", "A", "B ends", "C"], ["peak", *"AC"]
    assert log == warm_up + first + second + third
    assert [result.status for result in results] == ["ok", "out of memory", "ok"]
    assert results[0].train_seconds == pytest.approx([0.2] * 3)
    # A turn of half a second has three steps of 0.2 s.
    assert len(results[0].losses) == WARM_UP_STEPS + 3 * 3
    assert results[0].steps_bytes == 50 and results[0].process_bytes == 70
    # A peer that hangs leaves time for our model: it has less in each task, least to prepare.
    assert set(workers[0].timeouts) == {60.0}
    assert workers[1].timeouts == [30.0] + [45.0] * (fails_at - 1)


@pytest.mark.slow
def test_a_worker_fails_for_a_reason(tmp_path):
    with Worker("timm", TOY, tmp_path) as worker, pytest.raises(WorkerError) as caught:
        worker.do("prepare", timeout_seconds=60.0)
    assert caught.value.kind in ("failed", "not installed")  # There are no parameters.


@pytest.mark.medium
def test_a_worker_is_killed(tmp_path):
    with Worker("matmul", TOY, tmp_path) as worker:
        worker._process.kill()
        with pytest.raises(WorkerError, match="killed by signal 9") as caught:
            worker.do("measure", timeout_seconds=60.0)
    assert caught.value.kind == "failed"


def test_a_reference_that_failed_is_not_run_again(monkeypatch):
    failed, updates_run = Reference("flax", [], LOGITS, "failed: x"), []
    monkeypatch.setattr(Common, "_run", lambda self, case, n, _: updates_run.append(n) or failed)
    with Common() as common:
        for _ in range(2):
            assert common.reference(TOY, 4, timeout_seconds=1.0) is failed
    assert updates_run == [4]


@pytest.mark.medium
def test_a_flag_that_xla_does_not_know(tmp_path):
    env = {"XLA_FLAGS": "--xla_not_a_flag=1"}
    with (
        Worker("matmul", TOY, tmp_path, env=env, side=16) as worker,
        pytest.raises(WorkerError, match=r"^Unknown flag.*--xla_not_a_flag=1") as caught,
    ):
        worker.do("measure", timeout_seconds=60.0)
    assert caught.value.kind == "refused by this jaxlib"


def test_a_task_leaves_time_for_others():
    left = Effort(deadline=time.monotonic() + 30.0).timeout()
    assert 15.0 < left <= 20.0
    assert Effort(deadline=time.monotonic() - 1.0).timeout() == 0.0


@pytest.mark.medium
def test_a_worker_rests_between_its_turns(tmp_path):
    with Worker("matmul", TOY, tmp_path, side=16) as worker:
        assert worker.do("measure", timeout_seconds=60.0) > 0
        before = worker.cpu_seconds()
        time.sleep(0.5)
        assert worker.cpu_seconds() - before < 0.1
        with pytest.raises(WorkerError, match="longer than its time limit"):
            worker.hear(timeout_seconds=0.1)  # It was told nothing.


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--variant=Q/16", ('there is no size "Q"',)),
        ("--variant=Ti16", ("write a size, a slash and a patch size",)),
        ("--size=100", ("100",)),
        ("--batch=many", ("--batch=many: write whole numbers",)),
        ("--dtype=float16", ("--dtype=float16 is not known.", "bfloat16")),
        ("--remat=som", ("--remat=som is not known.", "full")),
        ("--scan=yes", ("--scan=yes is not known.",)),
        ("--mesh=dat=2", ('there is no axis "dat". Did you mean "data"?',)),
        ("--mesh=data=two", ("write whole numbers, such as data=4,fsdp=2",)),
        ("--peers=tim", ('there is no peer "tim". Did you mean "timm"?',)),
        ("--sweep --peers=timm", ("--sweep measures our model alone",)),
        ("--variant=", ("--variant is empty",)),
        ("--optimizer=adam", ("adamw",)),
    ],
)
def test_mistakes(flags, texts):
    result = call("benchmark", *flags.split())
    assert result.code == 2 and result.err.startswith("error: "), result
    assert all(text in result.err for text in texts), result.err


def test_grid():
    texts = {"variant": ["Ti/16"], "size": ["32"], "batch": ["4", "8"], "dtype": ["float32"],
             "remat": ["none", "full"], "scan": [], "attention": []}  # fmt: skip
    grid = Grid.parse(texts, mesh="fsdp=2", optimizer="adamw")
    groups = list(grid.groups())
    assert [title for title, _ in groups] == [
        f"Ti/16, 32 px, batch {batch}, float32, adamw, mesh fsdp=2" for batch in (4, 8)
    ]
    assert [case.remat for case in groups[0][1]] == ["none", "full"]
    ((_, cases),) = grid.sweeps()
    assert len(cases) == 2 * 2 * 2  # Batch, remat, and both values of scan.
    assert parse_mesh("") == (1, 1, 1) and parse_mesh("data=4,tensor=2") == (4, 1, 2)


# ------------------------------------------------------------------------------------- profiles

PROGRAM = """\
HloModule jit_train_step

%fused (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %tanh.1 = f32[8,4]{1,0} tanh(%p.1), metadata={op_name="jit(f)/jvp(Vit)/mlp/tanh"}
}

%body (b: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %dot.1 = f32[8,4]{1,0} dot(%x, %y), metadata={op_name="jit(f)/jvp(Vit)/blocks/attn/query/dot"}
  %dot.2 = f32[2,8,8]{2,1,0} dot(%x, %y), metadata={op_name="jit(f)/jvp(Vit)/blocks/attn/dot"}
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %while.1 = (s32[], /*index=5*/f32[8,4]{1,0}) while(%t), condition=%c, body=%body
  %gelu = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused
  %copy.1 = bf16[8,4]{0,1} copy(%gelu)
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%copy.1), to_apply=%sum
  %add.1 = f32[8,4]{1,0} add(%a, %a), metadata={op_name="jit(f)/add"}
  ROOT %fmha = f32[8,4]{1,0} custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


def test_instructions_of_a_program():
    instructions = hlo.parse(PROGRAM)
    assert {name: each.kind for name, each in instructions.items() if not each.is_control} == {
        "dot.1": hlo.MATMUL, "dot.2": hlo.ATTENTION, "gelu": hlo.ELEMENTWISE, "copy.1": hlo.COPY,
        "all-reduce.1": hlo.COLLECTIVE, "add.1": hlo.OPTIMIZER, "fmha": hlo.ATTENTION,
    }  # fmt: skip
    assert "tanh.1" not in instructions  # It is inside a fusion.
    assert instructions["while.1"].is_control
    # The compiler's copy has the source of what it copies.
    assert instructions["copy.1"].source == instructions["gelu"].source != ""
    assert instructions["copy.1"].size_bytes == 64 and instructions["dot.2"].size_bytes == 512


def test_time_is_divided_among_what_runs():
    instructions = hlo.parse(PROGRAM)
    operations = [
        trace.Interval("while.1", 0.0, 100.0),  # Contains others.
        trace.Interval("dot.1", 10.0, 30.0),
        trace.Interval("gelu", 20.0, 40.0),  # Shares 20 to 30.
        trace.Interval("copy.1", 90.0, 130.0),  # The step ends at 100.
        trace.Interval("other.7", 50.0, 60.0),  # Of no known program.
    ]
    shares, idle = trace.divide_time(operations, instructions, start=0.0, end=100.0)
    assert shares == {"dot.1": 15.0, "gelu": 15.0, "other.7": 10.0, "copy.1": 10.0}
    assert idle == 50.0 and sum(shares.values()) + idle == 100.0
    kinds = trace.by_kind(shares, instructions)
    assert kinds[hlo.MATMUL] == 15.0 and kinds["other programs"] == 10.0
    # Equal operations of two blocks are added up.
    source = "jit(f)/transpose(jvp(Vit))/encoder/block_{}/mlp/fc1/dot"
    blocks = {f"dot.{i}": hlo.Instruction(f"dot.{i}", "dot", 4, "f32[1]", source.format(i))
              for i in range(2)}  # fmt: skip
    (longest,) = longest_operations({"dot.0": 1.0, "dot.1": 2.0}, blocks, 3)
    assert longest == (("backward encoder/blocks/mlp/fc1/dot", hlo.MATMUL), 2, 3.0)


# ----------------------------------------------------------------------------------- contenders


def test_the_reference_is_the_plain_model_where_that_can_be():
    accepted = {name: is_plain(Case(name, 224).model_config()) for name in (
        "B/16", "H/14", "R50+B/16", "22B/14", "Mixer-B/16", "BiT-R50x1"
    )}  # fmt: skip
    assert [name for name, plain in accepted.items() if plain] == ["B/16", "H/14"]


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Parameters of the toy for all contenders, and losses and outputs of the plain Flax model."""
    folder = tmp_path_factory.mktemp("parameters")
    assert weights.write(TOY, folder, ("transformers", "timm", "flax")) == {}
    with jax.default_matmul_precision("highest"):
        plain = make_contender("flax", TOY.reference(), folder)
        plain.prepare()
        losses = plain.train(3).losses
        return folder, Reference("flax", list(losses), plain.outputs())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_jax", "transformers", "timm"])
def test_contenders_compute_the_same(common, name):
    if name != "vit_jax":
        library(name)
    folder, reference = common
    contender = make_contender(name, TOY, folder)
    assert contender.prepare().platform == "cpu"
    losses = contender.train(3).losses
    verdict = compare(
        "float32", losses=losses, reference_losses=reference.losses, outputs=contender.outputs(),
        reference_outputs=reference.outputs,
    )  # fmt: skip
    assert not verdict.problem and losses[0] - losses[2] > 0.05 and verdict.loss_difference < 2e-5
    assert contender.forward(2).seconds > 0


@pytest.mark.slow
def test_the_whole_benchmark():
    cases = [dataclasses.replace(TOY, remat=remat) for remat in ("none", "full")]
    effort = Effort(rounds=2, turn_seconds=0.0, matmul_side=64)
    results = benchmark(cases, peers=["flax", "timm"], effort=effort)
    for result in results[:3]:
        assert result.is_ok and result.reference == "flax", result
        assert len(result.train_seconds) == len(result.forward_seconds) == 2
        assert result.preparation.compile_seconds > 0 and result.matmul_share() > 0
        assert 50e6 < result.steps_bytes <= result.process_bytes
        assert result.verdict.output_difference < 1e-5
    assert results[-1].status in ("ok", "not installed")


@pytest.mark.slow
def test_the_command_profiles(tmp_path):
    out = tmp_path / "profile.json"
    flags = ("--variant=mu/16", "--size=32", "--batch=4", f"--out={out}")
    done = call("benchmark", "--profile", *flags)
    assert done.code == 0 and "unaccounted" in done.out, done
    (profile,) = json.loads(out.read_text())
    total = sum(profile["seconds_by_kind"].values()) + profile["unaccounted_seconds"]
    assert total == pytest.approx(profile["step_seconds"], rel=1e-6)
    assert profile["seconds_by_kind"][hlo.MATMUL] > 0 and profile["memory"]["temporary"] > 0
    assert profile["arrays"][0][2] >= profile["arrays"][-1][2] > 0
