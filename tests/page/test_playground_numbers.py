"""What the Playground computes, compared with NumPy: cosines, principal components, number types, .npy files."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.page_modules import PageModules

PCA = """
import { pca, place } from "./pca.js";
import { finish } from "./slices.js";
import { cosines, cosinesTo, unitVectors } from "./vectors.js";
const units = unitVectors(given.vectors.map((vector) => Float64Array.from(vector)));
const plane = finish(pca(finish(cosines(units)), units.length));
const [query] = unitVectors([Float64Array.from(given.query ?? given.vectors[0])]);
return ({ x: [...plane.x], y: [...plane.y], explained: plane.explained, query: place(plane, cosinesTo(query, units)) });
"""
EQUAL = [[1.0, 2.0, 3.0]] * 4


def groups(seed: int, *, texts: int, size: int) -> NDArray[np.float64]:
    """Return vectors around five centres, like those of texts on five topics."""
    random = np.random.default_rng(seed)
    return np.asarray(random.normal(size=(5, size))[np.arange(texts) % 5] + 0.5 * random.normal(size=(texts, size)))


def components(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates on the two principal components of unit vectors, and the explained shares."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)
    coordinates = left[:, :2] * sizes[:2]
    signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])
    return coordinates * signs, sizes[:2] ** 2 / (sizes**2).sum()


@pytest.mark.parametrize(("texts", "size"), [(3, 384), (12, 384), (500, 384), (120, 1024), (100, 8)])
def test_the_map_shows_the_principal_components(modules: PageModules, texts: int, size: int) -> None:
    vectors = groups(texts, texts=texts, size=size)
    plane = modules.run(PCA, {"vectors": vectors.tolist()})
    coordinates, explained = components(vectors)
    assert np.allclose(np.column_stack([plane["x"], plane["y"]]), coordinates, atol=1e-3)
    assert np.allclose(plane["explained"], explained, atol=1e-4)


def test_a_query_has_the_place_that_its_vector_has_among_the_texts(modules: PageModules) -> None:
    vectors = groups(1, texts=40, size=64).tolist()
    plane = modules.run(PCA, {"vectors": vectors, "query": vectors[7]})
    assert np.allclose(plane["query"], [plane["x"][7], plane["y"][7]], atol=1e-6)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param([[1.0, 2.0]], id="one-text"),
        pytest.param(EQUAL, id="equal-texts"),
        pytest.param([[0.0, 0.0]] * 3, id="zero-vectors"),
    ],
)
def test_without_differences_all_points_are_at_the_origin(modules: PageModules, vectors: list[list[float]]) -> None:
    plane = modules.run(PCA, {"vectors": vectors})
    assert plane["x"] == plane["y"] == [0] * len(vectors)
    assert plane["explained"] == plane["query"] == [0, 0]


def test_two_texts_are_on_a_line_with_the_first_one_to_the_right(modules: PageModules) -> None:
    plane = modules.run(PCA, {"vectors": [[1.0, 0.0], [0.0, 1.0]]})
    assert np.allclose(plane["x"], [0.5**0.5, -(0.5**0.5)])
    assert plane["y"] == [0, 0]
    assert np.allclose(plane["explained"], [1, 0])


def test_components_of_equal_size_are_found_as_well(modules: PageModules) -> None:
    """Three groups of equal vectors: both components explain one half, and one start vector sees only one of them."""
    vectors = np.eye(3)[np.arange(99) % 3]
    plane = modules.run(PCA, {"vectors": vectors.tolist()})
    assert np.allclose(plane["explained"], [0.5, 0.5])
    between = np.hypot(plane["x"][0] - plane["x"][1], plane["y"][0] - plane["y"][1])
    assert np.isclose(between, 2**0.5)


def test_similarity_of_all_pairs_is_the_cosine(modules: PageModules) -> None:
    code = """
    import { finish } from "./slices.js";
    import { cosines, extremePairs, neighbours, sharedNearest, unitVectors } from "./vectors.js";
    const units = unitVectors(given.map((vector) => Float32Array.from(vector)));
    const matrix = finish(cosines(units));
    const { best, worst } = finish(extremePairs(matrix, units.length, 3));
    const shared = finish(sharedNearest(matrix, matrix.map((x) => -x), units.length));
    return ({ matrix: [...matrix], best, worst, near: neighbours(matrix, units.length, 4, 2), shared });
    """
    vectors = groups(2, texts=9, size=33)
    found = modules.run(code, vectors.tolist())
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = units @ units.T
    assert np.allclose(np.reshape(found["matrix"], (9, 9)), expected, atol=1e-6)
    pairs = sorted(((expected[a, b], a, b) for a in range(9) for b in range(a + 1, 9)), reverse=True)
    assert [(pair["a"], pair["b"]) for pair in found["best"]] == [(a, b) for _, a, b in pairs[:3]]
    assert [(pair["a"], pair["b"]) for pair in found["worst"]] == [(a, b) for _, a, b in pairs[:-4:-1]]
    order = [int(index) for index in np.argsort(-expected[4]) if index != 4]
    assert [entry["index"] for entry in found["near"]] == order[:2]
    assert found["shared"] == 0


NUMBERS = np.array([0.0, -0.0, 0.5, -0.25, 1.0, -1.0, 6e-8, -3e-5, 1 / 3, 0.99951172], dtype=np.float32)


def encoded(dtype: str) -> NDArray[Any]:
    """Return `NUMBERS` as the service sends them with this `dtype`."""
    match dtype:
        case "int8":
            return np.round(127 * NUMBERS).astype(np.int8)
        case "uint8":
            return (np.round(127 * NUMBERS) + 128).astype(np.uint8)
        case "ubinary":
            return np.packbits(NUMBERS > 0)
        case "binary":
            return (np.packbits(NUMBERS > 0).astype(np.int16) - 128).astype(np.int8)
    return NUMBERS.astype(dtype)


DTYPES = ["float32", "float16", "int8", "uint8", "binary", "ubinary"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_each_number_type_are_read_and_mean_their_values(modules: PageModules, dtype: str) -> None:
    code = """
    import { bytesOfBase64, numbersOf, valuesOf } from "./vectors.js";
    const bytes = bytesOfBase64(given.base64);
    return ({ numbers: numbersOf(bytes, given.dtype), values: [...valuesOf(bytes, given.dtype, 10)] });
    """
    sent = encoded(dtype)
    found = modules.run(code, {"base64": base64.b64encode(sent.tobytes()).decode(), "dtype": dtype})
    assert np.array_equal(found["numbers"], sent.astype(np.float64))
    if "binary" in dtype:
        assert found["values"] == np.where(NUMBERS > 0, 1, -1).tolist()
    else:
        assert np.allclose(found["values"], NUMBERS, atol={"int8": 1 / 254, "uint8": 1 / 254}.get(dtype, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("texts", [1, 3, 500])
def test_npy_files_are_read_by_numpy(modules: PageModules, dtype: str, texts: int) -> None:
    code = """
    import { npyFile } from "./npy.js";
    import { DTYPES, bytesOfBase64 } from "./vectors.js";
    const file = npyFile(bytesOfBase64(given.base64), DTYPES[given.dtype].numpy, given.shape);
    return (Buffer.from(file).toString("base64"));
    """
    matrix = np.stack([np.roll(encoded(dtype), shift) for shift in range(texts)])
    given = {"base64": base64.b64encode(matrix.tobytes()).decode(), "dtype": dtype, "shape": matrix.shape}
    file = base64.b64decode(modules.run(code, given))
    loaded = np.load(io.BytesIO(file), allow_pickle=False)
    assert loaded.dtype == matrix.dtype
    assert np.array_equal(loaded, matrix)
    assert loaded.flags.c_contiguous
    assert (len(file) - matrix.nbytes) % 64 == 0


def test_special_halves_are_read(modules: PageModules) -> None:
    bits = np.array([0x7C00, 0xFC00, 0x7E00, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x8000], dtype=np.uint16)
    code = 'import { halfToNumber } from "./vectors.js";\nreturn given.map((x) => String(halfToNumber(x)));'
    found = [float(text.replace("Infinity", "inf")) for text in modules.run(code, bits.tolist())]
    assert np.array_equal(found, bits.view(np.float16).astype(np.float64), equal_nan=True)
