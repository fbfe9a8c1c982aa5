from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from selfdistill.views.mask_counts import independent_ratios, mask_counts, stratified_ratios, visible_index
from selfdistill.views.mask_functions import block_mask, inverse_block_mask, random_mask
from selfdistill.views.target_blocks import multi_block_masks

TINY = [(1, 2), (2, 1), (2, 2), (1, 7), (3, 3), (4, 4), (2, 14), (7, 3)]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def assert_images_are_independent(mask: Tensor) -> None:
    """Two images overlap as much as their frequencies say: E|a ∩ b| = Σ_p f_p²."""
    frequency = mask.double().mean(0)
    overlap = (mask[0::2] & mask[1::2]).sum(1).double()
    error = overlap.std() / len(overlap) ** 0.5
    assert abs(overlap.mean() - frequency.square().sum()) < 4 * error


# --- counts and ratios


def test_mask_counts() -> None:
    ratios = torch.tensor([0.0, 0.001, 0.1, 0.3, 0.5, 0.99, 1.0])
    assert mask_counts(ratios, (4, 4)).tolist() == [0, 1, 2, 5, 8, 15, 15]
    assert mask_counts(ratios, (4, 4), min_masked=3).tolist() == [0, 3, 3, 5, 8, 15, 15]
    assert mask_counts(ratios, (1, 2), min_masked=3).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert mask_counts(torch.tensor([120 / 196]), (14, 14)).tolist() == [120]


@pytest.mark.parametrize(
    ("batch", "probability", "masked"), [(128, 0.5, 64), (7, 0.5, 3), (1, 0.5, 1), (9, 1, 9), (9, 0, 0)]
)
def test_stratified_ratios(batch: int, probability: float, masked: int) -> None:
    ratios = stratified_ratios(batch, 0.1, 0.5, probability, generator=seeded())
    drawn = ratios[ratios > 0].sort().values
    assert len(drawn) == masked
    for i, ratio in enumerate(drawn.tolist()):
        assert 0.1 + 0.4 * i / masked - 1e-6 <= ratio <= 0.1 + 0.4 * (i + 1) / masked + 1e-6


def test_stratified_ratios_are_uniform_and_in_random_order() -> None:
    generator = seeded()
    draws = torch.stack([stratified_ratios(8, 0.1, 0.5, 0.5, generator=generator) for _ in range(2000)])
    assert ((draws > 0).float().mean(0) - 0.5).abs().max() < 0.05
    values = draws[draws > 0]
    assert values.mean().item() == pytest.approx(0.3, abs=0.005)
    assert values.std().item() == pytest.approx(0.4 / 12**0.5, rel=0.03)


def test_independent_ratios() -> None:
    ratios = independent_ratios(20000, 0.1, 0.5, 0.25, generator=seeded())
    values = ratios[ratios > 0]
    assert len(values) / 20000 == pytest.approx(0.25, abs=0.01)
    assert 0.1 <= values.min() < 0.102
    assert 0.498 < values.max() <= 0.5
    assert values.mean().item() == pytest.approx(0.3, abs=0.005)
    # The number of masked images varies from batch to batch, unlike with strata.
    numbers = {int((independent_ratios(8, 0.1, 0.5, 0.5, generator=seeded(s)) > 0).sum()) for s in range(50)}
    assert len(numbers) > 4


# --- random


@pytest.mark.parametrize("grid", TINY)
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.15, 0.75, 1.0])
def test_random_mask_has_the_exact_count(grid: tuple[int, int], ratio: float) -> None:
    mask = random_mask(50, grid, ratio, generator=seeded())
    patches = math.prod(grid)
    expected = 0 if ratio == 0 else min(max(round(ratio * patches), 1), patches - 1)
    assert mask.shape == (50, patches)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == expected).all()


def test_random_mask_is_uniform() -> None:
    mask = random_mask(20000, (2, 2), 0.5, generator=seeded())
    codes = (mask * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16)
    two = [sum(1 << i for i in pair) for pair in itertools.combinations(range(4), 2)]
    assert codes.sum() == codes[two].sum()
    assert (codes[two] / 20000 - 1 / 6).abs().max() < 0.015
    assert_images_are_independent(random_mask(4000, (14, 14), 0.3, generator=seeded(1)))


# --- block


def block_mask_by_loops(
    counts: Tensor, grid: tuple[int, int], min_block: int, aspect: tuple[float, float], generator: Generator
) -> Tensor:
    """The same distribution from the same draws, one image, block and patch at a time."""
    height, width = grid
    active = [b for b, count in enumerate(counts.tolist()) if count]
    draw = torch.rand(4, len(active), 16, generator=generator).double()
    side = torch.randint(8, (len(active),), generator=generator).tolist()
    mask = torch.zeros(len(counts), height, width, dtype=torch.bool)
    for image, b in enumerate(active):
        count = int(counts[b])
        smallest = min(count, min_block)
        left = 1.0
        blocks = []
        for u_area, u_aspect, u_top, u_left in draw[:, image].T.tolist():
            area = smallest + left * (1 - u_area) * (count - smallest)
            left *= u_area
            low, high = max(aspect[0], area / width**2), min(aspect[1], height**2 / area)
            ratio = math.exp(math.log(low) + u_aspect * (math.log(high) - math.log(low)))
            rows = min(max(round(math.sqrt(area * ratio)), 1), height)
            columns = min(max(round(math.sqrt(area / ratio)), 1), width)
            top, start = int(u_top * (height - rows + 1)), int(u_left * (width - columns + 1))
            blocks.append((top, start, top + rows, start + columns))

        def turn(row: int, column: int, kind: int = side[image]) -> tuple[int, int]:
            row = height - 1 - row if kind % 4 in (1, 3) else row
            column = width - 1 - column if kind % 4 in (2, 3) else column
            return (row, column) if kind < 4 else (column, row)

        def outside(row: int, column: int, boxes: tuple[tuple[int, int, int, int], ...] = tuple(blocks)) -> list[bool]:
            return [not (t <= row < b and left <= column < r) for t, left, b, r in boxes]

        order = sorted(itertools.product(range(height), range(width)), key=lambda p: (outside(*p), turn(*p)))
        for row, column in order[:count]:
            mask[b, row, column] = True
    return mask.flatten(1)


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (3, 9), (2, 2)])
def test_block_mask_equals_loops(grid: tuple[int, int]) -> None:
    patches = math.prod(grid)
    counts = torch.randint(0, patches, (40,), generator=seeded(7))
    for min_block, aspect in ((4, (0.3, 1 / 0.3)), (16, (0.5, 1.0))):
        ours = block_mask(counts, grid, min_block=min_block, aspect=aspect, generator=seeded(3))
        theirs = block_mask_by_loops(counts, grid, min_block, aspect, seeded(3))
        # Rounding in float32 may take a length of exactly one half to the other side.
        assert (ours != theirs).any(1).sum() <= 1


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    min_block=st.integers(1, 40),
    aspect=st.sampled_from([(0.3, 1 / 0.3), (1.0, 1.0), (0.01, 0.1), (5.0, 90.0)]),
    seed=st.integers(0, 1000),
)
def test_block_mask_counts_are_exact(
    height: int, width: int, min_block: int, aspect: tuple[float, float], seed: int
) -> None:
    if height * width < 2:
        return
    counts = torch.arange(height * width)
    mask = block_mask(counts, (height, width), min_block=min_block, aspect=aspect, generator=seeded(seed))
    assert mask.shape == (height * width, height * width)
    assert torch.equal(mask.sum(1), counts)


def test_block_mask_on_a_huge_grid() -> None:
    counts = torch.tensor([0, 1, 20000, 160 * 250 - 1])
    mask = block_mask(counts, (160, 250), generator=seeded())
    assert torch.equal(mask.sum(1), counts)
    one = block_mask(torch.full((20,), 100**2), (160, 250), min_block=100**2, aspect=(1.0, 1.0), generator=seeded())
    rows_and_columns = one.view(-1, 160, 250)
    assert (rows_and_columns.any(1).sum(1) == 100).all()
    assert (rows_and_columns.any(2).sum(1) == 100).all()


@pytest.mark.parametrize(("aspect", "rows", "columns"), [(1.0, 6, 6), (4.0, 12, 3), (0.25, 3, 12)])
def test_one_block_is_a_rectangle_at_a_uniform_place(aspect: float, rows: int, columns: int) -> None:
    mask = block_mask(
        torch.full((6000,), 36), (14, 14), min_block=36, aspect=(aspect, aspect), generator=seeded()
    ).view(-1, 14, 14)
    in_rows, in_columns = mask.any(2), mask.any(1)
    assert (in_rows.sum(1) == rows).all()
    assert (in_columns.sum(1) == columns).all()
    for inside, length in ((in_rows, rows), (in_columns, columns)):
        starts = inside.int().argmax(1).bincount(minlength=14)
        places = 14 - length + 1
        assert not starts[places:].any()
        assert (starts[:places] / 6000 - 1 / places).abs().max() < 0.03


def test_aspect_is_log_uniform() -> None:
    # On a large grid one block of 400 patches has all the shapes of the range; where rounding makes it too small, a
    # few patches of a second block come in: a row counts if it is at least half as full as the fullest.
    mask = block_mask(torch.full((4000,), 400), (60, 60), min_block=400, generator=seeded()).view(-1, 60, 60)
    filled = [mask.sum(dim) for dim in (2, 1)]
    rows, columns = (f.gt(f.amax(1, keepdim=True) / 2).sum(1).double() for f in filled)
    position = (rows / columns).log() / math.log(1 / 0.3)
    for edge in (-0.5, 0.0, 0.5):
        assert (position < edge).double().mean().item() == pytest.approx((edge + 1) / 2, abs=0.03)
    assert position.abs().quantile(0.97) < 1.05


@pytest.mark.parametrize(("ratio", "min_block"), [(0.1, 4), (0.3, 4), (0.5, 4), (120 / 196, 16)])
def test_block_mask_is_as_blocky_as_the_sequential_procedure(ratio: float, min_block: int) -> None:
    """Edges between masked and visible patches, and how often each is masked, against BEiT's algorithm 1."""
    count = round(ratio * 196)
    generator = seeded(5)
    references = []
    for _ in range(300):
        mask = torch.zeros(14, 14, dtype=torch.bool)
        while (rest := count - int(mask.sum())) > 0:
            u = torch.rand(4, generator=generator).tolist()
            area = min_block + u[0] * max(rest - min_block, 0)
            aspect = math.exp(math.log(0.3) * (1 - 2 * u[1]))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows > 14 or columns > 14:
                continue
            top, left = int(u[2] * (15 - rows)), int(u[3] * (15 - columns))
            block = torch.zeros_like(mask)
            block[top : top + rows, left : left + columns] = True
            for place in (block & ~mask).nonzero()[:rest]:
                mask[tuple(place)] = True
        references.append(mask)

    def edges(mask: Tensor) -> float:
        across = (mask[:, 1:] != mask[:, :-1]).sum() + (mask[:, :, 1:] != mask[:, :, :-1]).sum()
        return across.item() / len(mask)

    def frequency(mask: Tensor) -> Tensor:
        # The cut of the last block favours a corner in the procedure above: average over all turns.
        mean = mask.float().mean(0)
        mean = (mean + mean.flip(0)) / 2
        mean = (mean + mean.flip(1)) / 2
        return (mean + mean.T) / 2

    ours = block_mask(torch.full((2000,), count), (14, 14), min_block=min_block, generator=seeded()).view(-1, 14, 14)
    scattered = random_mask(2000, (14, 14), ratio, generator=seeded()).view(-1, 14, 14)
    assert edges(ours) == pytest.approx(edges(torch.stack(references)), rel=0.1)
    assert edges(ours) < 0.7 * edges(scattered)
    assert (frequency(ours) - frequency(torch.stack(references))).abs().max() < 0.07


def test_block_mask_favours_no_direction() -> None:
    mask = block_mask(torch.full((20000,), 80), (14, 14), generator=seeded()).view(-1, 14, 14)
    frequency = mask.float().mean(0)
    for turned in (frequency.flip(0), frequency.flip(1), frequency.T):
        assert (frequency - turned).abs().max() < 0.025
    # Places are uniform among those that fit, as in the papers, so the middle is covered more often than a corner.
    assert 0.03 < frequency.min() < frequency.max() < 0.8
    assert_images_are_independent(mask.flatten(1))


def test_two_patches_of_a_2x2_grid_lie_side_by_side_or_one_above_the_other() -> None:
    mask = block_mask(torch.full((4000,), 2), (2, 2), generator=seeded())
    seen = {tuple(row) for row in mask.nonzero()[:, 1].view(-1, 2).tolist()}
    assert {(0, 1), (2, 3), (0, 2), (1, 3)} <= seen


@pytest.mark.parametrize("counts", [[0, 16], [-1, 3]])
def test_block_mask_refuses_impossible_counts(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts: got .* allowed are 0 to 15 on the grid 4x4"):
        block_mask(torch.tensor(counts), (4, 4))


# --- inverse block


@pytest.mark.parametrize("grid", [*TINY, (14, 14)])
@pytest.mark.parametrize("ratio", [0.2, 0.8, 0.999])
def test_inverse_block_mask_has_the_exact_count(grid: tuple[int, int], ratio: float) -> None:
    patches = math.prod(grid)
    mask = inverse_block_mask(20, grid, ratio, block=min(3, *grid), generator=seeded())
    assert (mask.sum(1) == min(max(round(ratio * patches), 1), patches - 1)).all()


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_inverse_block_mask_keeps_squares_around_the_centres(block: int) -> None:
    mask = inverse_block_mask(50, (14, 14), 0.8, block=block, generator=seeded())
    centres = torch.randint(196, (50, max(1, int(196 * 0.27 / block**2))), generator=seeded())
    fitted = 0
    for b in range(50):
        squares = set()
        for centre in centres[b].tolist():
            first_row, first_column = centre // 14 - block // 2, centre % 14 - block // 2
            for row, column in itertools.product(range(block), repeat=2):
                if 0 <= first_row + row < 14 and 0 <= first_column + column < 14:
                    squares.add((first_row + row) * 14 + first_column + column)
        visible = set((~mask[b]).nonzero().flatten().tolist())
        assert len(visible) == 39
        assert visible <= squares if len(squares) >= 39 else squares <= visible
        fitted += len(squares) == 39
    assert fitted < 50


def test_inverse_block_mask_images_are_independent() -> None:
    assert_images_are_independent(inverse_block_mask(4000, (14, 14), 0.8, generator=seeded()))


# --- multi-block


def boxes(index: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of the bounding boxes of [..., n] patch indices."""
    row, column = index // width, index % width
    top, left = row.amin(-1), column.amin(-1)
    return top, left, row.amax(-1) - top + 1, column.amax(-1) - left + 1


@pytest.mark.parametrize("seed", range(6))
def test_multi_block_masks_of_the_paper(seed: int) -> None:
    context, targets = multi_block_masks(64, (14, 14), generator=seeded(seed))
    assert targets.shape[:2] == (64, 4)
    _, _, rows, columns = boxes(targets, 14)
    # Full rectangles of one size, within the paper's area (up to the rounding of two sides) and shape.
    assert len(rows.unique()) == len(columns.unique()) == 1
    assert (rows * columns == targets.shape[2]).all()
    assert 0.12 * 196 <= targets.shape[2] <= 0.23 * 196
    assert 0.6 <= rows[0, 0] / columns[0, 0] <= 1.7
    for index in (context, targets):
        assert (index.diff(dim=-1) > 0).all()
        assert index.amin() >= 0
        assert index.amax() < 196
    assert context.shape[1] >= 10
    for b in range(64):
        assert not set(context[b].tolist()) & set(targets[b].flatten().tolist())
    _, _, rows, columns = boxes(context, 14)
    assert rows.max() <= 14
    assert columns.max() <= 14


def test_multi_block_sizes_follow_scale_and_aspect_apart() -> None:
    """With one random number for both, area and shape would be tied; the context window would miss 14 rows."""
    areas, shapes, spans = [], [], []
    for seed in range(400):
        context, targets = multi_block_masks(1, (40, 40), targets=1, context_scale=(0.85, 1.0), generator=seeded(seed))
        _, _, rows, columns = boxes(targets, 40)
        areas.append(rows.item() * columns.item() / 1600)
        shapes.append(rows.item() / columns.item())
        spans.append(boxes(context, 40)[2].item())
    area, shape = torch.tensor(areas), torch.tensor(shapes)
    assert abs(torch.corrcoef(torch.stack([area, shape]))[0, 1]) < 0.15
    assert area.mean().item() == pytest.approx(0.175, abs=0.004)
    assert shape.mean().item() == pytest.approx(1.125, abs=0.03)
    assert 0.145 < area.min() < area.max() < 0.21
    assert 36 <= min(spans) <= 37
    assert max(spans) == 40


def test_multi_block_places_are_uniform_and_reach_every_side() -> None:
    _, targets = multi_block_masks(4000, (14, 14), generator=seeded(2))
    top, left, rows, columns = boxes(targets, 14)
    for start, length in ((top, rows), (left, columns)):
        places = 14 - int(length[0, 0]) + 1
        share = start.flatten().bincount(minlength=places) / start.numel()
        assert len(share) == places
        assert (share - 1 / places).abs().max() < 0.02
    covered = torch.zeros(4000, 196, dtype=torch.bool).scatter_(1, targets[:, 0], True)
    assert_images_are_independent(covered)


def test_multi_block_context_is_cut_at_random() -> None:
    context, targets = multi_block_masks(4000, (14, 14), context_scale=(1.0, 1.0), generator=seeded(2))
    # Of the patches in no target each is kept as often as any other of its image: no corner is favoured.
    allowed = torch.ones(4000, 196).scatter_(1, targets.flatten(1), 0)
    kept = torch.zeros(4000, 196).scatter_(1, context, 1)
    share = (kept.sum(0) / allowed.sum(0)).view(14, 14)
    assert (share[:4, :4].mean() - share[-4:, -4:].mean()).abs() < 0.02
    assert kept.sum() < allowed.sum()


@pytest.mark.parametrize("grid", TINY)
def test_multi_block_on_tiny_grids(grid: tuple[int, int]) -> None:
    patches = math.prod(grid)
    for seed in range(20):
        context, targets = multi_block_masks(64, grid, generator=seeded(seed))
        assert context.shape[0] == targets.shape[0] == 64
        assert context.shape[1] >= 1
        assert 1 <= targets.shape[2] < patches
        hit = torch.zeros(64, patches).scatter_(1, targets.flatten(1), 1.0)
        assert not hit.gather(1, context).any()


def test_multi_block_with_a_target_as_large_as_the_image() -> None:
    context, targets = multi_block_masks(
        16, (4, 4), target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0), generator=seeded()
    )
    assert targets.shape == (16, 4, 12)
    assert context.shape == (16, 4)


def test_multi_block_redraws_images_with_too_little_context() -> None:
    """On 6x6, a quarter of the grid is nine patches; without redrawing, some of 512 images have fewer."""
    arguments = {"target_scale": (0.2, 0.2), "context_scale": (0.85, 0.85)}
    free = [multi_block_masks(512, (6, 6), min_keep=1, generator=seeded(s), **arguments)[0].shape[1] for s in range(5)]
    kept = [multi_block_masks(512, (6, 6), min_keep=10, generator=seeded(s), **arguments)[0].shape[1] for s in range(5)]
    assert min(free) < 9 <= min(kept)


# --- visible


def test_visible_index() -> None:
    mask = random_mask(30, (5, 6), 0.4, generator=seeded())
    index = visible_index(mask)
    assert index.shape == (30, 18)
    for b in range(30):
        assert index[b].tolist() == [p for p in range(30) if not mask[b, p]]


def test_visible_index_refuses_a_ragged_batch() -> None:
    with pytest.raises(ValueError, match="mask: got rows with 1 to 2 visible patches"):
        visible_index(torch.tensor([[True, False, False], [True, True, False]]))


# --- all


def makers() -> dict[str, object]:
    counts = torch.full((12,), 40)
    return {
        "random": lambda g: random_mask(12, (14, 14), 0.3, generator=g),
        "block": lambda g: block_mask(counts, (14, 14), generator=g),
        "inverse": lambda g: inverse_block_mask(12, (14, 14), 0.8, generator=g),
        "multi": lambda g: multi_block_masks(12, (14, 14), generator=g)[1],
        "strata": lambda g: stratified_ratios(12, 0.1, 0.5, 0.5, generator=g),
        "ratios": lambda g: independent_ratios(12, 0.1, 0.5, 0.5, generator=g),
    }


@pytest.mark.parametrize("name", makers())
def test_the_generator_alone_decides(name: str) -> None:
    make = makers()[name]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(seeded(4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(make(seeded(4)), first)
    other = make(seeded(5))
    assert other.shape != first.shape or not torch.equal(other, first)
    # Without a generator the default one is used.
    torch.manual_seed(4)
    assert torch.equal(make(None), first)


@pytest.mark.parametrize("grid", [(1, 1), (0, 4), (4,), (2, 2, 2)])
def test_bad_grid(grid: tuple[int, ...]) -> None:
    for make in (
        lambda: random_mask(2, grid, 0.5),
        lambda: block_mask(torch.tensor([1]), grid),
        lambda: inverse_block_mask(2, grid, 0.5),
        lambda: multi_block_masks(2, grid),
    ):
        with pytest.raises(ValueError, match="grid: got .* allowed is"):
            make()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratios: got .* allowed are numbers in \[0, 1\]"):
        random_mask(2, (4, 4), ratio)
