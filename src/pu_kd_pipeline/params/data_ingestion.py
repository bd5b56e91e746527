"""The block `data_ingestion`: image sources and stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block, Share
from pu_kd_pipeline.params.paths import is_url


@dataclass(frozen=True)
class SourceType:
    """What the parameters of one type of image source need.

    Attributes:
        required_key: key of `ImageSource` that a source of this type cannot do without.
        path_must_exist: whether a local `path` is checked before the first node runs.
        path_kind: what it leads to: "folder", "file", or "pattern" for one file, a folder or a
            pattern of many files.
        keys: further keys that only this type has, or some types. What no type lists here is a key
            of every type.
    """

    required_key: str
    path_must_exist: bool
    path_kind: Literal["folder", "file", "pattern"] = "pattern"
    keys: tuple[str, ...] = ()

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The keys of this type that others need not have."""
        return (self.required_key, *self.keys)


# Each type has a class in images/sources/registry.py, which checks on import that none is missing.
SOURCE_TYPES = {
    # torchvision makes the folder itself where `download` is set
    "torchvision": SourceType(
        required_key="dataset",
        path_must_exist=False,
        path_kind="folder",
        keys=("path", "options", "download"),
    ),
    "folder": SourceType(
        required_key="path",
        path_must_exist=True,
        path_kind="folder",
        keys=("follow_links", "class_pattern"),
    ),
    "parquet": SourceType(
        required_key="path",
        path_must_exist=True,
        keys=("image_column", "label_column", "label_name_column", "id_column"),
    ),
    "list": SourceType(
        required_key="path",
        path_must_exist=True,
        path_kind="file",
        keys=(
            *("root", "separator", "encoding"),
            *("path_column", "label_column", "label_name_column", "id_column"),
        ),
    ),
    "webdataset": SourceType(
        required_key="path",
        path_must_exist=True,
        keys=("image_column", "label_column", "label_name_column"),
    ),
    "demo": SourceType(required_key="part", path_must_exist=False),
}

if TYPE_CHECKING:
    SourceTypeName = str  # type checkers take only literals that are written out
else:
    SourceTypeName = Literal[tuple(SOURCE_TYPES)]


class ImageSource(Block):
    """One place that images come from.

    `type` picks the reader: `torchvision` (a data set by class name), `folder` (class sub-folders,
    or flat), `parquet` (image bytes in a column), `list` (image files whose paths and labels are in
    a CSV, TSV or Parquet file), `webdataset` (tar archives of samples), all of them local or at any
    fsspec URL, or `demo` (the embedded digits).
    """

    type: SourceTypeName = Field(description="what it is; each type has keys of its own")
    name: str | None = Field(
        None, description="prefix of the ids and value of the index column `source`"
    )
    path: str | None = Field(
        None,
        description="folder, Parquet file, list, tar archive or glob, or torchvision's root; `~` "
        "is the home folder, and relative paths start at the project; fsspec URLs allowed, except "
        "for torchvision",
    )
    image_column: str | None = Field(
        None,
        description="parquet: column of the images; null: `image`, or else the only column with "
        "bytes that has another common name. webdataset: extension of the images, such as jpg, or "
        "jpg;png where the first that a sample has counts; null: a sample has one image",
    )
    label_column: str | None = Field(
        None,
        description="parquet, list: column of the class numbers or names; null: `label`, if there "
        "is one. webdataset: extension such as cls, or entry of a JSON file such as json.label, "
        "which are the default",
    )
    label_name_column: str | None = Field(
        None,
        description="names of the classes next to their numbers, as `label_column`; null: "
        "`label_name` for parquet and list, if there is one",
    )
    id_column: str | None = Field(
        None, description="parquet, list: column of the ids; null: `id`, if there is one"
    )
    follow_links: bool = Field(
        False,
        description="folder: follow links to folders, and to files outside of it; local folders "
        "only",
    )
    class_pattern: str | None = Field(
        None,
        description="folder: a regular expression with a group `label`, such as "
        r"'(?P<label>[a-z]+)_\d+\.jpg', for the entire path of an image below the folder; other "
        "images are left out",
    )
    root: str | None = Field(
        None,
        description="list: folder or URL where the paths in the list start; null: the folder of "
        "the list",
    )
    path_column: str | None = Field(
        None, description="list: column of the paths, such as file_name; null: `path`"
    )
    separator: str | None = Field(
        None, description="list: between the fields of a text file; null: the one of its header"
    )
    encoding: str | None = Field(
        None, description="list: of a text file, such as cp1252; null: UTF-8, or by its byte mark"
    )
    dataset: str | None = Field(
        None, description="torchvision: class in torchvision.datasets, such as MNIST"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="torchvision: keyword arguments of that class"
    )
    download: bool = Field(
        False, description="torchvision: download the files when they are missing"
    )
    part: Literal["teacher_training", "labeled", "pool", "test"] | None = Field(
        None, description="demo: which part"
    )
    labels: Literal["classes", "truth", "ignore"] = Field(
        "ignore",
        description="classes: every image has a label, which is a class of the teacher; truth: a "
        "label that is a class of the teacher marks a relevant image, any other an irrelevant one "
        "(for evaluation only); ignore: no labels",
    )
    label_map: dict[str, int] | None = Field(
        None,
        description="source label or class name -> class of the teacher; labels that are not "
        "listed are no class",
    )
    sorted_names: bool = Field(
        False,
        description="the teacher's classes have only numbers, and count the source's class names "
        "in sorted order, as torchvision's ImageFolder does",
    )
    # Strict: YAML reads the class name 1e3 as a float, which would become the label 1000.
    exclude_labels: tuple[StrictInt | str, ...] = Field(
        (), description="leave out images with these labels or class names"
    )
    per_class: int | None = Field(
        None, ge=1, description="keep this many images of each class, drawn by `seed`"
    )
    limit: int | None = Field(
        None, ge=1, description="keep at most this many images, drawn by `seed`"
    )
    share: tuple[Share, Share] = Field(
        (0.0, 1.0),
        description="keep ids whose hash falls in [from, to): disjoint shares of one source never "
        "overlap",
    )
    label_ranks: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)] | None] | None = (
        Field(
            None,
            description="of each label of the source, keep the images with the ranks [from, to), "
            "counted from 0 in an order that only the ids decide; to: null for all the others. "
            "Images whose label is no class of the teacher are all kept",
        )
    )
    other_labels: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="with labels: classes, what becomes of images whose label is no class of the "
        "teacher, or that have none",
    )

    @field_validator("label_map", mode="before")
    @classmethod
    def _keys_are_texts(cls, label_map: Any) -> Any:
        """Accept whole numbers as keys, and refuse what YAML makes of other unquoted keys."""
        if not isinstance(label_map, dict):
            return label_map
        texts = {}
        for key, index in label_map.items():
            if isinstance(key, bool | float):
                raise ValueError(
                    f"YAML reads one of the keys as {key!r}: write the label in quotes"
                )
            text = key
            if isinstance(key, int):
                text = str(key)
            if text in texts:
                raise ValueError(f"the key {text} is there twice, as a number and in quotes")
            texts[text] = index
        return texts

    @field_validator("exclude_labels", mode="before")
    @classmethod
    def _labels_are_whole(cls, labels: Any) -> Any:
        """Refuse what YAML makes of unquoted labels such as 1e3."""
        if isinstance(labels, list | tuple):
            for label in labels:
                if isinstance(label, float):
                    raise ValueError(f"YAML reads {label!r}: write the label in quotes")
        return labels

    @field_validator("class_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as exc:
            raise ValueError(f"{pattern!r} is not a regular expression: {exc}") from exc
        if "label" not in compiled.groupindex:
            raise ValueError(
                f"{pattern!r} has no group `label`: write (?P<label>…) around what names the class"
            )
        return pattern

    @field_validator("separator")
    @classmethod
    def _separator_is_one_character(cls, separator: str | None) -> str | None:
        if separator is None:
            return None
        if len(separator) != 1 or separator in '"\r\n':
            raise ValueError(
                f"{separator!r} is not one character between fields: write a tab in double "
                'quotes, "\\t"'
            )
        return separator

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        try:
            b"a".decode(encoding)
        except UnicodeError:
            pass  # of an encoding that takes more than one byte for a character
        except (LookupError, ValueError) as exc:
            raise ValueError(f"{encoding!r} is no encoding that Python knows ({exc})") from exc
        return encoding

    @model_validator(mode="after")
    def _check_keys_belong_to_the_type(self) -> ImageSource:
        own_keys = SOURCE_TYPES[self.type].all_keys
        for name, about in SOURCE_TYPES.items():
            for key in about.all_keys:
                if key not in own_keys and self._is_given(key):
                    raise ValueError(
                        f"{key} is no key of a source of type {self.type!r}, but of type "
                        f"{name!r}: remove it, or correct `type`"
                    )
        return self

    def _is_given(self, key: str) -> bool:
        """Return whether a key has another value than if it were left out."""
        field = type(self).model_fields[key]
        default = field.get_default(call_default_factory=True)
        return bool(getattr(self, key) != default)

    @model_validator(mode="after")
    def _check_keys_fit_together(self) -> ImageSource:
        required_key = SOURCE_TYPES[self.type].required_key
        if getattr(self, required_key) is None:
            raise ValueError(f"a source of type {self.type!r} needs the key {required_key!r}")
        if self.follow_links and is_url(str(self.path)):
            raise ValueError(f"follow_links is for local folders, and {self.path} is a URL")
        if self.share[0] >= self.share[1]:
            raise ValueError(f"share must be [from, to) with from < to, got {list(self.share)}")
        if self.sorted_names and self.label_map is not None:
            raise ValueError("label_map and sorted_names exclude each other: remove one of them")
        if self.per_class is not None and self.labels == "ignore":
            raise ValueError("per_class needs labels: set labels to 'classes'")
        if self.other_labels == "leave_out" and self.labels != "classes":
            raise ValueError(
                "other_labels: leave_out is for `labels: classes`, where every image needs a "
                "class; remove it"
            )
        return self

    @model_validator(mode="after")
    def _check_label_ranks(self) -> ImageSource:
        if self.label_ranks is None:
            return self
        start, end = self.label_ranks
        if end is not None and start >= end:
            raise ValueError(
                f"label_ranks must be [from, to) with from < to, got {list(self.label_ranks)}"
            )
        if self.labels == "ignore":
            raise ValueError(
                "label_ranks needs labels: set labels to 'classes', or to 'truth' for a pool, "
                "where labels are only used for this and for the evaluation"
            )
        return self


class ImageStoreParams(Block):
    """How decoded images are kept on disk."""

    kind: Literal["auto", "packed", "encoded"] = Field(
        description="packed: memory-mapped uint8 arrays; encoded: compressed bytes, decoded per "
        "batch; auto: packed where the working size is at most packed_max_size_px or the store "
        "fits disk_budget_gb"
    )
    packed_max_size_px: int = Field(
        gt=0, description="largest working size that `auto` always packs"
    )
    disk_budget_gb: float = Field(
        gt=0, description="largest packed store, in 10^9 bytes, that `auto` makes"
    )
    shard_size: int = Field(gt=0, description="most images in one shard")
    max_image_pixels: int = Field(
        gt=0, description="an image that declares more pixels is quarantined undecoded"
    )
    max_quarantined_share: Share = Field(
        description="a larger share of unusable images stops the run"
    )
    n_workers: int = Field(
        ge=1, description="decoding threads, of all processes where an engine has several"
    )


class NearDuplicateParams(Block):
    """How close two images must be for one to count as a copy of the other.

    Their distance is 1 - the correlation of their gradients.
    """

    max_distance: float = Field(
        gt=0, le=1, description="the largest distance of a copy, whatever the images are like"
    )
    max_ratio: float = Field(
        gt=0,
        le=1,
        description="and as a share of the distance between that image and the fifth nearest of "
        "all others",
    )


class DataIngestionParams(Block):
    """The block `data_ingestion`: where the four image stores come from."""

    seed: int = Field(
        ge=0,
        lt=SEEDS,
        description="draws the images of `per_class` and `limit`, and the split of the demo",
    )
    labeled: tuple[ImageSource, ...] = Field(
        description="the handful of the teacher's images; [] where there is none, as for "
        "`full_unlabeled`"
    )
    pool: tuple[ImageSource, ...] = Field(
        min_length=1, description="the unlabeled pool; several sources are mixed"
    )
    test: tuple[ImageSource, ...] = Field(
        min_length=1, description="touched once, by evaluation; only a certificate needs no labels"
    )
    teacher_training: tuple[ImageSource, ...] = Field(
        (), description="experiments that train a teacher: its training images"
    )
    store: ImageStoreParams
    near_duplicates: NearDuplicateParams | None = Field(
        description="null: only images with equal pixels are found"
    )

    @model_validator(mode="after")
    def _check_labels_of_test_and_training(self) -> DataIngestionParams:
        # A teacher is trained on them: it needs every class.
        if any(source.labels != "classes" for source in self.teacher_training):
            raise ValueError(
                "every image of teacher_training needs its class: set `labels: classes` on its "
                "sources"
            )
        kinds = {source.labels for source in self.test}
        # Stated, because a forgotten key would be found after all training.
        is_stated = all("labels" in source.model_fields_set for source in self.test)
        if kinds != {"classes"} and not (kinds == {"ignore"} and is_stated):
            raise ValueError(
                "every image of test needs its class: set `labels: classes` on its sources, or "
                "`labels: ignore` on all for a certificate alone"
            )
        return self

    @property
    def has_test_labels(self) -> bool:
        """Whether the test images have classes; a certificate needs none."""
        return all(source.labels == "classes" for source in self.test)
