"""Icons of emoji with their names, in several drawing styles: the layout of npm's emoji-datasource packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import InputError

_LEFT_OUT = ("Flags", "Component")
"""Categories of icons that show no thing: flags, and skin and hair on their own."""


@dataclass(frozen=True)
class Icons:
    """Concepts that each have a name and a drawing in every style.

    Args:
        names: [n] in lower case, as Unicode has them; some concepts share one.
        categories: [n] such as "Animals & Nature".
        subcategories: [n] such as "animal-bird".
        images: by style, [n] paths of images of 64 x 64 pixels, in the order of the names.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    subcategories: tuple[str, ...]
    images: dict[str, tuple[Path, ...]]


def is_icons(folder: Path) -> bool:
    """Say whether a folder holds icons, of one style or several."""
    return next(_packages(folder), None) is not None


def read_icons(folder: str | Path) -> Icons:
    """Find the icons of a folder, without flags and components, that all its styles have.

    Args:
        folder: what npm's emoji-datasource-STYLE unpacks (emoji.json and img/STYLE/64), or a folder of several of these
            folders, one a style.

    Raises:
        InputError: no emoji.json or no images; one that is damaged; an icon's image is missing; a style twice.
    """
    packages = list(_packages(Path(folder)))
    if not packages:
        raise InputError(f"{folder}: has no emoji.json, nor has a folder in it; unpack emoji-datasource-twitter there")
    concepts: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Path]] = {}
    for package in packages:
        icons = _read(package / "emoji.json")
        concepts |= {key: icon for key, icon in icons.items() if key not in concepts}
        styles = sorted(path.parent for path in package.glob("img/*/64") if path.is_dir())
        if not styles:
            raise InputError(f"{package}: has no folder img/STYLE/64; unpack it too")
        for style in styles:
            if style.name in found:
                raise InputError(f"{package}: has style {style.name!r}, which another folder has; keep one")
            found[style.name] = {
                key: style / "64" / icon["image"] for key, icon in icons.items() if icon.get(f"has_img_{style.name}")
            }
    keys = [key for key in concepts if all(key in images for images in found.values())]
    if not keys:
        raise InputError(f"{folder}: no icon has an image in all of {', '.join(sorted(found))}; unpack them anew")
    for images in found.values():
        for key in keys:
            if not images[key].is_file():
                raise InputError(f"{images[key]}: is missing, but emoji.json names it; unpack the icons anew")
    chosen = [concepts[key] for key in keys]
    return Icons(
        tuple(icon["name"].lower() for icon in chosen),
        tuple(icon["category"] for icon in chosen),
        tuple(icon["subcategory"] for icon in chosen),
        {style: tuple(found[style][key] for key in keys) for style in sorted(found)},
    )


def _packages(folder: Path) -> Iterator[Path]:
    """Yield the folders with an emoji.json: this one, or those in it, also where npm's own "package" lies between."""
    if (folder / "emoji.json").is_file():
        yield folder
    elif folder.is_dir():
        for entry in sorted(folder.iterdir()):
            inside = (entry, entry / "package")
            yield from (path for path in inside if (path / "emoji.json").is_file())


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Read the icons of an emoji.json, without those left out, by their code points."""
    try:
        icons = json.loads(file.read_bytes())
        return {
            icon["unified"]: icon
            for icon in icons
            if icon["category"] not in _LEFT_OUT and icon["name"] and icon["image"] and icon["subcategory"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{file}: cannot be read as a list of icons ({reason}); unpack it anew") from error
