"""Names are found, or refused with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_plugins import load_only, offering, write_distribution

from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.registry import Registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def registry_of(site: Path, *files: Path) -> Registry:
    return Registry(load_only(site, *files))


def find(registry: Registry, name: str, seam: str = "loss"):
    return registry.find(seam, name, "r.yaml:7", "stages.ppo.loss")


def test_find_by_name_and_by_package(site: Path) -> None:
    write_distribution(site, "some-package", rg_a=offering("loss", "clip"))
    registry = registry_of(site)
    component, package = find(registry, "clip")
    assert (component.name, package) == ("clip", "some-package")
    assert find(registry, "some-package/clip")[0] is component
    assert find(registry, "Some_Package/clip")[0] is component
    assert registry.seams() == ["loss"]
    assert [c.name for _, _, c in registry.all()] == ["clip"]


def test_unknown_name_is_refused_with_the_nearest(site: Path) -> None:
    write_distribution(site, "some-package", rg_b=offering("loss", "pairwise"))
    with pytest.raises(RecipeError) as caught:
        find(registry_of(site), "pairwize")
    assert str(caught.value) == (
        "r.yaml:7: stages.ppo.loss: no loss is called 'pairwize'; did you mean 'pairwise'?; "
        "known: pairwise"
    )


def test_a_name_of_another_seam_or_package_says_so(site: Path) -> None:
    write_distribution(site, "some-package", rg_c=offering("advantage", "gae"))
    registry = registry_of(site)
    with pytest.raises(RecipeError, match="no installed plugin offers a loss; 'gae' is an adv"):
        find(registry, "gae")
    with pytest.raises(RecipeError, match="'gae' is in package some-package"):
        find(registry, "other/gae", "advantage")


def test_a_long_list_of_names_is_cut(site: Path) -> None:
    modules = {f"rg_long_{i:02}": offering("loss", f"loss-{i:02}") for i in range(20)}
    write_distribution(site, "many", **modules)
    with pytest.raises(RecipeError, match=r"loss-11, \.\.\. \(`rlhf-kit plugins list --seam loss"):
        find(registry_of(site), "zzz")


def test_two_packages_with_one_name(site: Path) -> None:
    write_distribution(site, "first", rg_d=offering("loss", "clip"))
    write_distribution(site, "second", rg_e=offering("loss", "clip"))
    registry = registry_of(site)
    with pytest.raises(RecipeError) as caught:
        find(registry, "clip")
    assert str(caught.value) == (
        "r.yaml:7: stages.ppo.loss: 2 packages offer a loss 'clip'; write first/clip or second/clip"
    )
    assert find(registry, "second/clip")[1] == "second"
    assert registry.ambiguous() == {("loss", "clip")}


def test_one_package_with_one_name_twice(site: Path) -> None:
    write_distribution(site, "first", rg_f=offering("loss", "clip"), rg_g=offering("loss", "clip"))
    with pytest.raises(PluginError, match=r"package 'first' declares loss 'clip' 2 times.*rg_f, r"):
        find(registry_of(site), "clip")


def test_a_broken_plugin_shows_its_exception(site: Path) -> None:
    write_distribution(site, "good", rg_h=offering("loss", "clip"))
    write_distribution(site, "bad-one", rg_bad="import no_such_module_at_all")
    registry = registry_of(site)
    assert find(registry, "clip")[1] == "good"
    cause = "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    for name in ("bad-one/special", "special"):
        with pytest.raises(PluginError) as caught:
            find(registry, name)
        assert cause in str(caught.value)
        assert "'bad-one'" in str(caught.value)
        assert str(caught.value).startswith("r.yaml:7: stages.ppo.loss: ")
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_a_broken_entry_point_does_not_hide_its_package(site: Path) -> None:
    write_distribution(site, "half", rg_i=offering("loss", "clip"), rg_j="1 / 0")
    assert find(registry_of(site), "half/clip")[0].name == "clip"
