"""What is known of a program that has been compiled for a slice, and what is wrong."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from fedjax_prune.runs.compiled_text import Operation, collectives, operations
from fedjax_prune.runs.topology import Slice
from fedjax_prune.types import Config


class Program(NamedTuple):
    """A program of a run.

    Attributes:
      name: of what it does.
      trains: whether its loops are local training.
      flops: of one run, by the definition of the model.
      compile: () -> the compiled program.
    """

    name: str
    trains: bool
    flops: float
    compile: Callable[[], jax.stages.Compiled]


class Finding(NamedTuple):
    """What is known of a program that has been compiled, or refused.

    Attributes:
      program: that was compiled.
      seconds: spent compiling.
      num_bytes: on each chip: `arguments`, `temporaries`, `results` that do not take
        the place of arguments, `program`.
      flops: of one run by XLA's count, in which each loop runs once, on each chip.
      operations: of the compiled program.
      refusal: why XLA has refused it, if memory was short; else empty.
    """

    program: Program
    seconds: float
    num_bytes: dict[str, int]
    flops: float
    operations: list[Operation]
    refusal: str


def compile_program(program: Program) -> Finding:
    """Compiles a program and reads what the compiler says of it.

    Raises:
      jax.errors.JaxRuntimeError: if XLA fails for another reason than memory.
    """
    began = time.monotonic()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        seconds = time.monotonic() - began
        refusal = str(error).splitlines()[0].partition(": ")[2].rstrip(".")
        return Finding(
            program, seconds, num_bytes={}, flops=0.0, operations=[], refusal=refusal
        )
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    num_bytes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    text = compiled.as_text()
    assert text is not None, "compilers of CPUs and TPUs print their programs"
    return Finding(
        program,
        seconds,
        num_bytes=num_bytes,
        flops=cost["flops"],
        operations=operations(text),
        refusal="",
    )


def problems(finding: Finding, target: Slice, resident: int) -> list[str]:
    """Says what is wrong with a program; nothing if it can be run as it is.

    Args:
      finding: of the program.
      target: the slice that it was compiled for.
      resident: bytes on each chip beside the program's own.
    """
    name = finding.program.name
    if finding.refusal:
        return [f"the {name} does not fit the memory of a chip: {finding.refusal}"]
    found = []
    needed = resident + sum(finding.num_bytes.values())
    if needed > target.chip.memory:
        found.append(
            f"the {name} needs {_amount(needed)} on each chip, which has "
            f"{_amount(target.chip.memory)}: take fewer lanes or a smaller "
            "client.batch_size, or keep client_rows on the host"
        )
    inside = [op for op in collectives(finding.operations) if op.in_loop]
    if inside and finding.program.trains:
        found.append(f"the {name} exchanges data in local training: {_counted(inside)}")
    return found


def describe(
    finding: Finding, target: Slice, config: Config, resident: int
) -> dict[str, str]:
    """The facts about a program, for a table.

    Args:
      finding: of the program.
      target: the slice that it was compiled for.
      config: with `devices` as a number.
      resident: bytes on each chip beside the program's own.
    """
    by_definition = finding.program.flops
    least = by_definition / config.devices / target.chip.flops
    known = {
        "FLOPs": f"{by_definition:.3g} by the definition of the model",
        "at least": f"{least:.3g} s, with these FLOPs at the peak of bfloat16",
        "compiled in": f"{finding.seconds:.0f} s",
    }
    if finding.refusal:
        return known
    inside = [op for op in finding.operations if op.in_loop]
    outside = [op for op in finding.operations if not op.in_loop]
    needed = resident + sum(finding.num_bytes.values())
    parts = {**finding.num_bytes, "rows of all clients": resident}
    words = [f"{_amount(size)} {part}" for part, size in parts.items() if size]
    known["FLOPs"] += f", {finding.flops:.3g} a chip by XLA if each loop ran once"
    return {
        "memory": f"{_amount(needed)} of {_amount(target.chip.memory)} a chip: "
        + ", ".join(words),
        "collectives": f"{_counted(collectives(outside))} outside of loops, "
        f"{_counted(collectives(inside))} in loops",
        "in loops": ", ".join(_slow(inside)) or "only arithmetic",
        **known,
    }


def _slow(inside: Iterable[Operation]) -> Iterator[str]:
    """Counts operations that take a chip long, or only move data."""
    for name in ("sort", "gather", "scatter", "copy", "custom-call"):
        if alike := [op for op in inside if op.name == name]:
            yield _counted(alike)


def _counted(found: Iterable[Operation]) -> str:
    counts = Counter(op.name for op in found)
    size = sum(op.num_bytes for op in found)
    words = [f"{count} {name}" for name, count in sorted(counts.items())]
    return ", ".join(words) + f" ({_amount(size)})" if words else "none"


def _amount(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
