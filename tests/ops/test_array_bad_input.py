"""What the functions for arrays are given: read right, or refused in one line, and never a crash."""

from __future__ import annotations

import numpy as np
import pytest
from array_kernels import identity, wavy, why_no_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepatlas_ops import array

pytestmark = pytest.mark.skipif(why_no_arrays() is not None, reason=str(why_no_arrays()))

SIZE = (4, 5, 6)
# The first argument of each function, and a call with it and with what fits to it.
CALLS = {
    "resample": ("volume", lambda x: array.resample(x, identity((2, 3, 4)).astype("f"))),
    "warp": ("volume", lambda x: array.warp(x, 0 * identity((2, 3, 4)).astype("f"))),
    "resize": ("volume", lambda x: array.resize(x, (2, 3, 4))),
    "implicit_warp": ("c_moving", lambda x: array.implicit_warp(x, identity((2, 3, 4)).astype("f"))),
    "invert": ("field", array.invert),
    "log_jacobian": ("field", array.log_jacobian),
    "folds": ("field", array.folds),
    "ncc": ("a", lambda x: array.ncc(x, wavy(SIZE).astype("f"))),
}
FIELD = wavy(SIZE).astype("f")


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "spoil, expected",
    [
        (lambda x: x.astype("f2"), "float64 or float32, got float16"),
        (lambda x: x.astype("i4"), "float64 or float32, got int32"),
        (lambda x: x.astype(object), "float64 or float32, got object"),
        (lambda x: x.astype(complex), "float64 or float32, got complex128"),
        (lambda x: x.astype("U8"), "float64 or float32, got <U8"),
        (lambda x: np.ma.masked_array(x), "a mask of its own .*, got MaskedArray"),
        (lambda x: x.tolist(), "an array .*, got list"),
        (lambda x: None, "an array .*, got NoneType"),
        (lambda x: x[0], r"\[B, [C3], D, H, W\], got \[3, 4, 5, 6\]"),
        (lambda x: x[:, :, :0], r"at least one voxel on each axis, got \[1, 3, 0, 5, 6\]"),
        (lambda x: x[0, 0, 0, 0, 0], r"\[B, [C3], D, H, W\]"),
        (
            lambda x: np.broadcast_to(x[..., :1], (1, 3, 4, 5, 2**24 + 1)),
            "at most 16777216 voxels on each axis",
        ),
    ],
)
def test_the_first_argument_is_named_in_one_line(name, spoil, expected):
    argument, call = CALLS[name]
    with pytest.raises(ValueError, match=f"^{name}: {argument}: expected .*{expected}") as error:
        call(spoil(FIELD))
    assert "\n" not in str(error.value)


ORDERS = {
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "big-endian": lambda x: x.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "every other one": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "backwards": lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
    "unaligned": lambda x: np.frombuffer(b"-" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "subclass": lambda x: x.view(type("Other", (np.ndarray,), {})),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_bytes_and_elements_is_read(name, order):
    call, given = CALLS[name][1], ORDERS[order](FIELD)
    before = given.copy()
    for got, want in zip(parts(call(given)), parts(call(FIELD)), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
        assert type(got) is np.ndarray and got.flags.writeable and not np.shares_memory(got, given)
    np.testing.assert_array_equal(given, before)


def test_an_array_in_order_is_read_without_a_copy():
    import tracemalloc

    volume = np.zeros((1, 1, 100, 100, 100))
    array.resize(volume, (2, 2, 2))
    tracemalloc.start()
    array.resize(volume, (2, 2, 2))
    array.folds(np.broadcast_to(np.float32(0), (1, 3, 2, 2, 2)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.nbytes / 100


WRONG = [
    (
        lambda: array.resample(FIELD, FIELD.astype("d")),
        "resample: coords: expected the dtype of volume, float32, got",
    ),
    (
        lambda: array.resample(FIELD, FIELD[:, :2]),
        r"resample: coords: expected \[B, 3, D, H, W\], got \[1, 2, 4",
    ),
    (lambda: array.warp(FIELD, FIELD[:0]), "warp: displacement: expected the batch size of volume, 1, got"),
    (
        lambda: array.resample(FIELD, FIELD, mode="cubic"),
        "resample: mode: expected one of linear, nearest, got",
    ),
    (
        lambda: array.warp(FIELD, FIELD, padding=0),
        "warp: padding: expected one of border, zeros, reflection, got 0",
    ),
    (lambda: array.resize(FIELD, (2, 3)), r"resize: size: expected three positive integers \(D, H, W\), got"),
    (lambda: array.resize(FIELD, (2, 3, 0)), "resize: size: expected three positive integers"),
    (lambda: array.resize(FIELD, np.ones((90, 9))), "resize: size: expected three positive integers"),
    (lambda: array.resize(FIELD, 7), "resize: size: expected three sizes"),
    (
        lambda: array.resize(FIELD, (2, 3, 2**40)),
        "resize: size: expected at most 16777216 voxels on each axis, got",
    ),
    (
        lambda: array.implicit_warp(FIELD, FIELD.astype("d")),
        "implicit_warp: c_fixed: expected the dtype of c_moving",
    ),
    (
        lambda: array.invert(FIELD, iterations=0),
        "invert: iterations: expected an integer of at least 1, got 0",
    ),
    (
        lambda: array.invert(FIELD, iterations=2**31),
        "invert: iterations: expected at most 2147483647, got 2147483648",
    ),
    (
        lambda: array.invert(FIELD, tolerance=np.nan),
        "invert: tolerance: expected a number of at least 0, got nan",
    ),
    (lambda: array.invert(FIELD, step="wide"), "invert: step: expected one of moving, .*, got 'wide'"),
    (
        lambda: array.invert(FIELD, mask=FIELD),
        r"invert: mask: expected \[1, 1, 4, 5, 6\], one weight",
    ),
    (
        lambda: array.invert(FIELD, mask=FIELD[:, :1] > 0, size=(2, 2)),
        "invert: size: expected three positive",
    ),
    (lambda: array.log_jacobian(FIELD, eps=0), "log_jacobian: eps: expected a number above 0, got 0"),
    (
        lambda: array.folds(FIELD, differences="both"),
        "folds: differences: expected one of central, digital",
    ),
    (
        lambda: array.folds(FIELD, FIELD[:, :1].astype("d")),
        "folds: mask: expected bool, an integer type or",
    ),
    (lambda: array.ncc(FIELD, FIELD[..., :2]), "ncc: b: expected the shape of a"),
    (
        lambda: array.ncc(FIELD, FIELD, window=4),
        "ncc: window: expected None or a positive odd integer, got 4",
    ),
    (lambda: array.ncc(FIELD, FIELD, eps="1"), "ncc: eps: expected a number above 0, got '1'"),
    (lambda: array.ncc(FIELD, FIELD, [1]), r"ncc: mask: expected an array \[B, 1, D, H, W\], got list"),
]


@pytest.mark.parametrize("call, message", WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_argument_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_options_may_be_numpy_scalars():
    same = array.ncc(FIELD, FIELD, window=3, eps=0.5)
    np.testing.assert_array_equal(array.ncc(FIELD, FIELD, window=np.int32(3), eps=np.float32(0.5)), same)
    array.invert(FIELD, iterations=np.int64(3), tolerance=np.float32(0.1), size=np.array([2, 3, 4]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: array.resize(FIELD, (2**24, 2**24, 2**24)),
        lambda: array.invert(FIELD, (2**24, 2**24, 2**24)),
        lambda: array.resize(np.broadcast_to(np.float32(0), (2**20, 1, 2**10, 2**10, 2**10)), (1, 1, 1)),
    ],
)
def test_what_no_memory_can_hold_is_refused_in_one_line(call):
    with pytest.raises(MemoryError, match=r"^(resize|invert): .*not enough memory for .* of ") as error:
        call()
    assert "\n" not in str(error.value)


def test_the_compiled_module_checks_its_arguments_too():
    from deepatlas_ops.array._library import kernels

    k, matrix = kernels(), np.eye(3, dtype="f")[None]
    for call, message in [
        (lambda: k.resize(np.zeros((1, 1, 2, 2, 2), ">f4"), 1, 1, 1), "volume: expected float64 or float32"),
        (lambda: k.resize(FIELD[..., ::2], 1, 1, 1), "volume: expected an aligned array in C order"),
        (lambda: k.resize(FIELD[0], 1, 1, 1), "volume: expected another number of axes"),
        (lambda: k.resize(FIELD, 0, 1, 1), "size: expected 1 to"),
        (lambda: k.sample(False, FIELD, FIELD, 7, 0), "mode: expected"),
        (lambda: k.sample(False, FIELD, FIELD, 0, 7), "padding: expected"),
        (lambda: k.sample(False, FIELD, FIELD.astype("d"), 0, 0), "field: expected the dtype"),
        (lambda: k.ncc(FIELD, FIELD, FIELD, 0, 1e-5), "mask: expected another shape"),
        (lambda: k.ncc(FIELD, FIELD, None, 2, 1e-5), "window: expected"),
        (
            lambda: k.implicit_warp(FIELD, FIELD, matrix[0], None, 1, 0, False),
            "matrix: expected another number",
        ),
        (lambda: k.implicit_warp(FIELD, FIELD, matrix[:, :2].copy(), None, 1, 0, False), "matrix: expected"),
        (lambda: k.implicit_warp(FIELD, FIELD, matrix, None, 0, 0, False), "iterations: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


ODD = [np.nan, np.inf, -np.inf, 1e38, -1e38, 2.0**31, -(2.0**31), -1.0, 1.0, 0.0]
anything = st.one_of(
    st.tuples(
        st.sampled_from(["<f4", ">f4", "f8", "f2", "i2", "?", "O", "U3", "c8", "M8[s]", "V4"]),
        hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=3),
        st.sampled_from("CF"),
    ).map(lambda given: np.zeros(given[1], given[0], given[2])),
    st.sampled_from([None, 3, "x", [[1.0]], object()]),
)
odd_arrays = st.tuples(
    st.tuples(st.integers(0, 2), st.integers(0, 3), *[st.integers(0, 5)] * 3),
    st.sampled_from(["f4", "f8"]),
    st.integers(0, 2**16),
).map(lambda given: np.random.default_rng(given[2]).choice(ODD, given[0]).astype(given[1]))
odd_fields = odd_arrays.map(lambda a: np.repeat(a[:, :1], 3, 1))
values = st.one_of(anything, odd_arrays, odd_fields, odd_fields)
FUNCTIONS = {
    "resample": lambda a, b, m, n: array.resample(a, b, padding=["border", "zeros", "reflection"][n % 3]),
    "nearest": lambda a, b, m, n: array.resample(a, b, mode="nearest"),
    "warp": lambda a, b, m, n: array.warp(a, b),
    "resize": lambda a, b, m, n: array.resize(a, (n, 3, 2)),
    "implicit_warp": lambda a, b, m, n: array.implicit_warp(
        a, b, mask=m, step=["moving", "newton", "fixed"][n % 3]
    ),
    "invert": lambda a, b, m, n: array.invert(a, mask=m, iterations=n),
    "log_jacobian": lambda a, b, m, n: array.log_jacobian(a, normalize_columns=n > 2, eps=n),
    "folds": lambda a, b, m, n: array.folds(a, m, differences=["central", "digital"][n % 2]),
    "ncc": lambda a, b, m, n: array.ncc(a, b, m, window=None if n == 0 else n),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
@given(a=values, b=values, m=st.one_of(st.none(), values), n=st.integers(-1, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_anything_gives_arrays_or_one_line(name, a, b, m, n):
    try:
        result = FUNCTIONS[name](a, b, m, n)
    except ValueError as error:
        op = name.replace("nearest", "resample")
        assert str(error).startswith(f"{op}: ") and ": expected " in str(error) and "\n" not in str(error)
    else:
        assert all(type(part) is np.ndarray for part in parts(result))
