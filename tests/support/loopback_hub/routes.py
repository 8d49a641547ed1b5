"""What the Hub answers: accounts, repositories, uploads, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import ClassVar

from .transport import FaultyHandler, RefusedError

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")


class Routes(FaultyHandler):
    """The routes of one Hub; each returns status, headers and body, or raises `RefusedError`."""

    ROUTES: ClassVar = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)", "branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/storage/(?P<oid>\w+)(/(?P<part>\d+))?", "store"),
        ("POST", r"/storage/(?P<oid>\w+)/complete", "complete"),
        ("POST", r"/storage/(?P<oid>\w+)/verify", "verify"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    @staticmethod
    def _json(value, status: int = 200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _user(self) -> str | None:
        """Whose token it is; none without a token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, repo: str, is_writing: bool = False):
        user, found = self._user(), self.hub.repositories.get(repo)
        if found is None or (found.is_private and user != repo.split("/")[0]):
            raise RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if is_writing and user != repo.split("/")[0]:
            raise RefusedError(403, f"You don't have the rights to write to {repo}")
        return found

    def _commit(self, repo: str, revision: str | None, is_writing: bool = False):
        """The commit that a branch or an oid names."""
        found = self._repository(repo, is_writing)
        for branch, commits in found.branches.items():
            if branch == (revision or "main"):
                return commits[-1]
            for commit in commits:
                if commit[0] == revision:
                    return commit
        raise RefusedError(404, "Revision not found", "RevisionNotFound")

    def whoami(self):
        user = self._user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        return self._json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self):
        import yaml

        content = json.loads(self.body)["content"]
        match = re.match(r"^\s*---\r?\n([\S\s]*?)\r?\n---\s*(\n|$)", content)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else {}
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        errors = [
            {"message": f'"{key}" with value "{name}" is not valid. Use an id from https://hf.co'}
            for key in ("base_model", "datasets")
            for name in ([metadata.get(key)] if isinstance(metadata.get(key), str) else metadata.get(key) or [])
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        ]
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return self._json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def create(self):
        user, asked = self._user(), json.loads(self.body)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        owner = asked.get("organization") or user
        if owner != user:
            raise RefusedError(403, f'You don\'t have the rights to create a model under the namespace "{owner}".')
        repo = f"{owner}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if repo in self.hub.repositories:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        start = (_oid(repo), {".gitattributes": (False, b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})
        self.hub.add_repository(repo, asked.get("visibility") == "private" or asked.get("private") is True, start)
        return self._json(url)

    def branch(self, repo: str, branch: str):
        start = self._commit(repo, json.loads(self.body or b"{}").get("startingPoint"), is_writing=True)
        branches = self.hub.repositories[repo].branches
        if branch in branches:
            raise RefusedError(409, "Reference already exists")
        branches[branch] = [start]
        return self._json({})

    def preupload(self, repo: str, revision: str):
        _, present = self._commit(repo, revision, is_writing=True)
        answers = []
        for file in json.loads(self.body)["files"]:
            is_binary = b"\0" in base64.b64decode(file["sample"])
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 or is_binary
            entry = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if file["path"] in present:
                entry["oid"] = _content_oid(*present[file["path"]])
            answers.append(entry)
        return self._json({"files": answers})

    def batch(self, repo: str):
        self._repository(repo, is_writing=True)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            entry, href = {"oid": oid, "size": size}, f"{self.hub.url}/storage/{oid}"
            if oid not in self.hub.objects:
                upload: dict = {"href": href}
                if self.hub.part_size and size > self.hub.part_size:
                    parts = range(1, -(-size // self.hub.part_size) + 1)
                    urls = {f"{number:05d}": f"{href}/{number}" for number in parts}
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": str(self.hub.part_size), **urls}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            answers.append(entry)
        return self._json({"transfer": "basic", "objects": answers})

    def store(self, oid: str, part: str | None):
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = self.body
            return 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""
        self._keep(oid, self.body)
        return 200, {}, b""

    def complete(self, oid: str):
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._keep(oid, b"".join(self.hub.parts[oid][number] for number in numbers))
        return self._json({})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "The content does not have the SHA-256 that was announced.")
        self.hub.objects[oid] = content

    def verify(self, oid: str):
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise RefusedError(404, "The object is not there in full.")
        return self._json({})

    def commit(self, repo: str, revision: str):
        before, files = self._commit(repo, revision, is_writing=True)
        commits = self.hub.repositories[repo].branches.get(revision)
        if commits is None:
            raise RefusedError(404, "Revision not found", "RevisionNotFound")
        files = dict(files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = (False, base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise RefusedError(400, f"LFS pointer {value['path']} points to an object that does not exist")
                files[value["path"]] = (True, self.hub.objects[value["oid"]])
            elif entry["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        oid = _oid(f"{before}{sorted((path, _content_oid(*file)) for path, file in files.items())}")
        commits.append((oid, files))
        return self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def info(self, repo: str, revision: str | None):
        oid, files = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        private = self.hub.repositories[repo].is_private
        return self._json(
            {"_id": oid, "id": repo, "modelId": repo, "sha": oid, "private": private, "tags": [], "siblings": siblings}
        )

    def tree(self, repo: str, revision: str, folder: str | None):
        _, files = self._commit(repo, revision)
        start = f"{folder}/" if folder else ""
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(path)}
            | ({"lfs": {"oid": _content_oid(True, content), "size": len(content), "pointerSize": 1}} if is_lfs else {})
            for path, (is_lfs, content) in files.items()
            if path.startswith(start)
        ]
        if folder and not entries:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        return self._json(entries)

    def resolve(self, repo: str, revision: str, path: str):
        oid, files = self._commit(repo, revision)
        if path not in files:
            return (
                404,
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": oid},
                b"",
            )
        is_lfs, content = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_content_oid(is_lfs, content)}"'}
        return 200, headers | ({"X-Linked-Size": str(len(content))} if is_lfs else {}), content


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _content_oid(is_lfs: bool, content: bytes) -> str:
    """SHA-256 of an LFS object, git's SHA-1 of a plain file."""
    return (
        hashlib.sha256(content).hexdigest()
        if is_lfs
        else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    )
