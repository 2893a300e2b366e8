"""Sentences about files: pickles of earlier versions, and what a file does not hold."""

import warnings
from collections.abc import Collection, Mapping, Sequence

from sb3_happo.common.plain_data import Unsaved
from sb3_happo.common.safe_files import SafeFileError, file_name
from sb3_happo.common.saved_files import Location, SavedFile
from sb3_happo.common.warn_once import warn_once

#: What files hold in the place of a lambda
_ALTERNATIVES = (
    "numbers, Stable-Baselines3's LinearSchedule(start, end, end_fraction), or a function or a "
    "class of a module, which sb3_happo.allow_in_files allows, in the place of a lambda or of a "
    "function inside another one"
)


def accept_pickle(
    location: Location, content: SavedFile, loader: str, trust_pickle: bool, stacklevel: int = 3
) -> None:
    """
    Refuse a file that is a pickle, or warn of it if the user trusts it.

    :param location: Path or open file
    :param content: Content of the file
    :param loader: Name of the class that loads it
    :param trust_pickle: Whether the user trusts the file
    :param stacklevel: Frames up to the user's call
    :raises ValueError: If the user has not said so
    """
    name = file_name(location)
    if not trust_pickle:
        raise SafeFileError(
            name,
            f"holds {content.words}, saved by an earlier version of sb3_happo as a pickle. Loading "
            f"a pickle can run any code that its author has put into it. If you trust the file: "
            f"{loader}.load(path, trust_pickle=True); `sb3-happo convert OLD NEW` or saving it "
            "again makes it a file without pickles.",
        )
    warnings.warn(
        f"{name} is a pickle of an earlier version, loaded because of trust_pickle=True. Save it "
        "again to have a file that is checked and runs nothing.",
        stacklevel=stacklevel,
    )


def warn_of_unsaved(
    owner: object,
    unsaved: Sequence[Unsaved],
    location: Location,
    loader: str,
    only_named: bool = False,
) -> None:
    """
    Warn once of values that a new file does not hold, or whose class must be supplied.

    :param owner: Object that was saved
    :param unsaved: These values
    :param location: Path or open file
    :param loader: Name of the class that loads it
    :param only_named: True if the user has left out the others
    """
    unsaved = [own for own in unsaved if own.named or not only_named]
    if not unsaved:
        return
    lines = []
    for own in unsaved:
        place = own.path.partition(".")[2] or own.path
        lines.append(f"{place} is {own.text}, {_remedy(own, place, loader)}")
    problems = "; ".join(dict.fromkeys(lines))
    warn_once(owner, problems, f"{file_name(location)} holds no code: {problems}.")


def _remedy(own: Unsaved, place: str, loader: str) -> str:
    if own.named:
        name = own.text.rpartition(":")[2].rpartition(".")[2]
        return (
            f"which the file names. To load it in another program, import it there and call "
            f"sb3_happo.allow_in_files({name}), or {loader}.load(path, "
            f"custom_objects={{{name!r}: {name}}})"
        )
    attribute = place.partition(".")[0]
    return (
        f"which the file does not hold. Pass it to {loader}.load(path, "
        f"custom_objects={{{attribute!r}: ...}}), or use {_ALTERNATIVES}"
    )


def check_unsaved(unsaved: Sequence[Unsaved], accepted: Collection[str], loader: str) -> None:
    """
    :param unsaved: Values of a model that a file does not hold
    :param accepted: Attributes that may be missing
    :param loader: Name of the class that loads the file
    :raises UnsavedError: If there are others
    """
    found: dict[str, list[str]] = {}
    for own in unsaved:
        place = own.path.partition(".")[2]
        attribute = place.partition(".")[0]
        if not own.named and attribute not in accepted:
            found.setdefault(attribute, []).append(f"{place} is {own.text}")
    if found:
        raise UnsavedError(found, loader)


class UnsavedError(ValueError):
    """
    Attributes of a model that cannot be saved, since files hold no code.

    :param found: Descriptions of the values, by attribute
    :param loader: Name of the class of the model
    """

    def __init__(self, found: Mapping[str, Sequence[str]], loader: str) -> None:
        names = list(found)
        values = "; ".join(text for texts in found.values() for text in texts)
        given = ", ".join(f"{name!r}: ..." for name in names)
        super().__init__(
            f"This {loader} model cannot be saved, since files hold no code: {values}. Use "
            f"{_ALTERNATIVES}. Or save the rest, model.save(path, exclude={names}), and load it by "
            f"{loader}.load(path, custom_objects={{{given}}})."
        )
        #: Names of the attributes
        self.attributes = tuple(names)
