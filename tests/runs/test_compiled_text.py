"""What is read out of the text of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from fedjax_prune.runs.compiled_text import Operation, collectives, operations

AXIS = "devices"


def compiled(function):
    """The text of a program in which each of two devices has five numbers."""
    mesh = Mesh(np.array(jax.devices()[:2]), (AXIS,))
    split = PartitionSpec(AXIS)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
    )
    return jax.jit(mapped).lower(jnp.ones(10)).compile().as_text()


def add(x):
    return jax.lax.psum(x, AXIS)


def until_large(step):
    return lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, step, x)


def in_a_branch(x):
    return jax.lax.cond(x.sum() > 5, add, jnp.sin, x)


@pytest.mark.parametrize(
    ("function", "in_loop"),
    [
        (add, [False]),
        (until_large(add), [True]),
        (until_large(in_a_branch), [True]),
        (until_large(until_large(add)), [True]),
        (lambda x: jax.lax.while_loop(lambda x: add(x).sum() < 99, jnp.sin, x), [True]),
        (lambda x: add(until_large(lambda x: 2 * x)(x)), [False]),
        (lambda x: add(until_large(add)(x)), [False, True]),
        (until_large(lambda x: 2 * x), []),
    ],
    ids=["outside", "in", "branch", "nested", "condition", "after", "both", "none"],
)
def test_collectives_are_found_where_they_are(function, in_loop):
    found = sorted(collectives(operations(compiled(function))))
    assert found == [Operation("all-reduce", 20, place) for place in in_loop]


def test_other_collectives_are_found_too():
    def exchange(x):
        shifted = jax.lax.ppermute(x, AXIS, [(0, 1), (1, 0)])
        return jax.lax.all_gather(shifted, AXIS).sum(0)

    found = collectives(operations(compiled(exchange)))
    assert [(op.name, op.num_bytes) for op in found] == [
        ("collective-permute", 20),
        ("all-gather", 40),
    ]


# As XLA prints it for a TPU: layouts with tiles and memory spaces, several results, a
# collective that is started and awaited apart, in a computation of its own.
OF_A_TPU = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->()}

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.2 = f32[]{:T(128)} add(%a, %b)
}

%async_computation.1 (p: bf16[4,8]) -> bf16[8,8] {
  ROOT %all-gather.3 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), dimensions={0}
}

%body.7 (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %start.1 = ((bf16[4,8]), bf16[8,8], u32[]{:S(2)}) async-start(%x), \
calls=%async_computation.1
  %done.1 = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} async-done(%start.1)
  %c.1 = (pred[3]{0:T(512)(128)(4,1)}, f8e4m3fn[6]{0}) custom-call(%done.1), \
custom_call_target="GatherScatter"
}

%cond.8 (s: (s32[], bf16[4,8])) -> pred[] {
  ROOT %lt.1 = pred[]{:T(512)} compare(%a, %b), direction=LT
}

ENTRY %main.9 (x: f32[4]) -> f32[4] {
  %w.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%t), \
condition=%cond.8, body=%body.7, metadata={op_name="jit(f)/while"}
  %r.1 = (f32[4]{0:T(128)}, /*index=1*/s32[2]{0}) all-reduce-start(%x, %y), \
channel_id=1, to_apply=%region_0.1
  ROOT %r.2 = (f32[4]{0:T(128)}, s32[2]{0}) all-reduce-done(%r.1)
}
"""


def test_the_text_of_a_tpu_is_read():
    found = operations(OF_A_TPU)
    assert collectives(found) == [
        Operation("all-gather", 128, in_loop=True),
        Operation("all-reduce", 24, in_loop=False),
    ]
    assert Operation("custom-call", 3 + 6, in_loop=True) in found
    assert [op.name for op in found if not op.in_loop] == ["add", "while", "all-reduce"]
