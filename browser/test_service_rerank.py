"""The search over a run that reranks: both orders side by side on a wide window, one below the other on a phone."""

import pytest
from exploring import TIMEOUT, answers

from made import make
from served import reranking_run
from serving import serving


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    world = make(tmp_path_factory.mktemp("page"), ["toy"], count=60)
    run = reranking_run(world.store, world.captions_file, world.folder)
    with serving(world, "--run", run, "--images", world.images) as address:
        yield address


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_first_stage_and_rerank_stand_side_by_side(visit, url, size, tmp_path):
    seen = visit(url, size=size)
    seen.page.get_by_label("Text, or an image above").fill("a red square")
    seen.page.get_by_label("Text, or an image above").press("Enter")
    found = answers(seen.page)
    found.locator("img").first.wait_for(timeout=TIMEOUT)
    assert found.locator("h3").all_inner_texts() == ["First stage", "Reranked"]
    first, second = (found.get_by_role("region", name=name) for name in ("First stage", "Reranked"))
    seen.page.screenshot(path=tmp_path / f"service-rerank-{size}.png", full_page=True)
    assert (first.locator("li").count(), second.locator("li").count()) == (12, 12)
    # What the page shows is what the routes say.
    orders = []
    for rerank, side in ((False, first), (True, second)):
        asked = {"text": "a red square", "k": 12, "rerank": rerank}
        said = seen.page.request.post(f"{url}/v1/search", data=asked).json()
        ids = side.locator("small a").all_inner_texts()
        assert ids == [hit["id"] for hit in said["hits"]]
        orders.append(ids)
    assert orders[0] != orders[1]
    left, right = first.bounding_box(), second.bounding_box()
    if size == "desktop":
        assert abs(left["y"] - right["y"]) < 5
        assert left["x"] + left["width"] <= right["x"]
    else:
        assert left["y"] + left["height"] <= right["y"]
        assert abs(left["x"] - right["x"]) < 5
    assert seen.foreign(url) == []
    assert seen.complaints == []
    assert seen.overflow() == 0
