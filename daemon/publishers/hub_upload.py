"""The process that uploads a version to the Hub: reads its order as JSON from standard input, imports none of ours."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx2
from huggingface_hub import HfApi, set_client_factory

REQUEST_SECONDS = 60.0


def upload(order: dict[str, Any]) -> None:
    """Make the repository, the commit and the tag, each if it is not there yet."""
    set_client_factory(lambda: httpx2.Client(timeout=REQUEST_SECONDS, follow_redirects=True))
    api = HfApi(endpoint=order["endpoint"], token=order["token"], library_name="factsyncd")
    repository, branch = order["repository"], order["branch"]
    api.create_repo(repository, private=order["private"], exist_ok=True)
    if branch != "main":
        api.create_branch(repository, branch=branch, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=order["directory"],
        revision=branch,
        commit_message=order["message"],
        delete_patterns="*",  # files of the former version that this one has not
    )
    api.create_tag(repository, tag=order["tag"], revision=commit.oid, exist_ok=True)


if __name__ == "__main__":
    upload(json.load(sys.stdin))
