"""Whether what a release writes to is there and lets us in, found out in seconds: DVC's remotes and S3 buckets.

DVC and s3fs themselves try a dead endpoint again and again for minutes; here it is asked once, with short timeouts.
"""

import os
from pathlib import Path
from typing import Any

from botocore import exceptions as aws

from umo.errors import BadInput, WorkFailed

CONNECT_SECONDS, READ_SECONDS, TRIES = 5, 10, 2
CREDENTIALS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/versions.md)"
FRESH = {"skip_instance_cache": True, "use_listings_cache": False}  # of s3fs: what is there now
REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")


def check_remote(name: str | None) -> tuple[str, str]:
    """Ask a remote of this repository (None: the default one) whether it would take a push; returns its name and place.

    Raises:
        BadInput: there is no such remote, its bucket is missing, or the credentials are missing or refused.
        WorkFailed: it cannot be reached.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            remote = repo.cloud.get_remote(name)
            place = remote.fs.unstrip_protocol(remote.path)
            label = f"DVC remote {remote.name} ({place})"
            if remote.worktree or remote.fs.version_aware:
                remedy = "unset worktree, version_aware"
                raise BadInput(f"{label}: versions are kept by DVC here, not by the store; {remedy}")
            if remote.fs.protocol == "s3":
                check_bucket(label, place, remote.fs.fs_args)
            elif remote.fs.protocol == "local":
                place = remote.path
                check_folder(f"DVC remote {remote.name}", Path(place))
            else:
                remote.fs.exists(remote.path)  # other kinds of store are asked with their own patience
    except DvcException as error:
        raise BadInput(f"DVC remote {name or '(the default)'}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise WorkFailed(f"{label}: cannot be reached ({error})") from error
    return remote.name, place


def complete(name: str, path: Path) -> None:
    """Upload what a remote lacks of a folder that was pushed: `dvc push` takes one whose list is there for whole, and
    its own notes of what it pushed before for what is there. WorkFailed where something is missing still.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.transfer import transfer

    try:
        with Repo() as repo:
            (out,) = repo.find_outs_by_path(str(path.resolve()))
            files = {found.value: found for _, _, found in out.get_obj()}
            store = repo.cloud.get_remote_odb(name)
            missing = files.keys() - set(store.list_oids_exists([*files]))
            if missing:
                transfer(repo.cache.local, store, {files[oid] for oid in missing})
            left = missing - set(store.list_oids_exists([*missing]))
    except (DvcException, OSError, aws.BotoCoreError, aws.ClientError) as error:
        raise WorkFailed(f"DVC remote {name}: {' '.join(str(error).split())}; nothing is tagged") from error
    if left:
        raise WorkFailed(f"DVC remote {name}: {len(left)} files of {path} did not arrive; nothing is tagged")


def check_folder(label: str, folder: Path) -> None:
    """Raise BadInput where nothing can be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{label}: {there} is no folder that can be written to; choose another, or mend its rights")


def check_bucket(label: str, url: str, settings: dict[str, Any]) -> None:
    """Ask the bucket of s3://BUCKET/PREFIX; raises what `explain` says.

    Args:
        settings: of s3fs, as DVC has them for a remote; none: credentials and endpoint are those of the environment.
    """
    import s3fs

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    try:
        store = s3fs.S3FileSystem(**{**settings, **FRESH, "config_kwargs": patience()})
        store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix.strip("/"), MaxKeys=1)
    except (aws.BotoCoreError, aws.ClientError, ValueError, OSError) as error:
        raise explain(label, error) from error


def patience() -> dict[str, Any]:
    """Of a client of S3: nobody waits for minutes."""
    retries = {"total_max_attempts": TRIES}
    return {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": retries}


def explain(label: str, error: Exception) -> BadInput | WorkFailed:
    """What an error of S3 says, in a line: BadInput where the bucket is missing or the credentials are missing or
    refused, WorkFailed where it cannot be reached.
    """
    cause = error.__cause__ or error  # s3fs says it in Python's terms
    code = cause.response.get("Error", {}).get("Code") if isinstance(cause, aws.ClientError) else None
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return BadInput(f"{label}: no credentials ({error}); {CREDENTIALS}")
    if isinstance(error, aws.ProfileNotFound):
        return BadInput(f"{label}: {error}; {CREDENTIALS}")
    if code in ("NoSuchBucket", "404"):
        return BadInput(f"{label}: there is no such bucket; make it, or mend the address")
    if code in REFUSED:
        return BadInput(f"{label}: the credentials are refused ({code}); {CREDENTIALS}")
    if isinstance(error, ValueError):
        return BadInput(f"{label}: {error}; mend endpointurl (dvc remote modify), or AWS_ENDPOINT_URL")
    return WorkFailed(f"{label}: cannot be reached ({' '.join(str(error).split())})")
