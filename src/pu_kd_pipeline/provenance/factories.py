"""The code of factories: `package.module:function`, by which parameters and cards name networks."""

from __future__ import annotations

import json
import re
import uuid
from importlib import metadata

from pu_kd_pipeline.provenance.code_index import why_unknown
from pu_kd_pipeline.provenance.fingerprint import current_index
from pu_kd_pipeline.provenance.modules import MISSING, PROJECT, PYTHON, content_digest

_FACTORY = re.compile(r"\w+(\.\w+)*:\w+")


def factory_digest(text: str) -> str:
    """Return a digest of the code of a factory; empty if the text names none.

    A factory may run anything that it imports. So all modules of the project count that its module
    imports, directly or through others, as whole files, and the versions of the distributions that
    they import. Data files that it reads are not known. Where it is not known which code runs, the
    digest differs each time.

    Args:
        text: such as `package.module:function`.
    """
    if not _FACTORY.fullmatch(text):
        return ""
    name = text.partition(":")[0]
    index = current_index()
    owner = index.finder.owner(name.partition(".")[0])
    if owner in (MISSING, PYTHON):
        return ""
    modules = []
    distributions = {owner}
    if owner == PROJECT:
        modules = index.modules_loaded_by(name)
        if not any(module.name == name for module in modules):
            return ""
        distributions = index.distributions_of(modules)
    digests = {module.name: module.digest for module in modules}
    if why_unknown(digests):  # so that nothing made with it is used again
        digests["which code runs is not known"] = uuid.uuid4().hex
    versions = {}
    for distribution in sorted(distributions):
        versions[distribution] = metadata.version(distribution)
    content = json.dumps([digests, versions], sort_keys=True)
    return content_digest(content.encode())
