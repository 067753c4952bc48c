"""What builds the Android demo without Android Studio: Debian's packages and the Kotlin compiler that PyPI has.

Nothing is installed: packages are unpacked into a folder of the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / "build" / "android" / "tools"

KOTLIN = "kotlin-jupyter-kernel"
"""It brings the compiler, the standard library and coroutines as jars."""
TEST_PACKAGES = ("junit4", "libhamcrest-java")
# dalvik-exchange (dx) and libandroid-23-java left Debian after bullseye.
APK_PACKAGES = (
    "aapt", "android-libaapt", "android-libandroidfw", "android-libbase", "android-liblog", "android-libutils",
    "android-libziparchive", "android-libbacktrace", "android-libart", "android-libnativeloader", "android-libcutils",
    "android-libunwind", "android-libnativebridge", "libprotobuf-lite32", "libzopfli1", "p7zip-full", "apksigner",
    "libapksig-java", "zipalign", "dexdump", "android-framework-res", "dalvik-exchange", "libandroid-23-java",
)  # fmt: skip
SUITES = ("bookworm", "bullseye")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class UnavailableError(Exception):
    """Debian's packages cannot be had on this machine."""


@dataclass(frozen=True, slots=True)
class Kotlin:
    """The jars of the compiler and of what compiled code needs."""

    jars: Path

    @property
    def compiler_path(self) -> str:
        """Class path that the compiler runs with."""
        return os.pathsep.join(str(jar) for jar in sorted(self.jars.glob("*.jar")) if jar.name != "coroutines.jar")

    @property
    def standard_library(self) -> Path:
        """kotlin-stdlib."""
        (jar,) = self.jars.glob("kotlin-stdlib-*.jar")
        return jar

    @property
    def coroutines(self) -> Path:
        """kotlinx.coroutines, cut out of the kernel's jar."""
        return self.jars / "coroutines.jar"


def require_java() -> None:
    """UnavailableError where there is no Java compiler and none can be installed."""
    if shutil.which("javac"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "default-jdk-headless"]):
            subprocess.run(["apt-get", *words], check=False, env=environment, stdout=subprocess.DEVNULL)
    if not shutil.which("javac"):
        raise UnavailableError("there is no javac: install a JDK from 17 on (Debian: apt install default-jdk-headless)")


def fetch_kotlin() -> Kotlin:
    """Download the compiler in the version of constraints.txt, once."""
    jars = TOOLS / "kotlin"
    kotlin = Kotlin(jars)
    if kotlin.coroutines.is_file():
        return kotlin
    wheels = TOOLS / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--constraint", str(REPOSITORY / "constraints.txt"), "--dest", str(wheels), KOTLIN]
    subprocess.run(pip, check=True)
    (wheel,) = wheels.glob("*.whl")
    jars.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".jar"):
                (jars / Path(name).name).write_bytes(archive.read(name))
    shutil.rmtree(wheels)
    (kernel,) = jars.glob("kotlin-jupyter-kernel-*-all.jar")
    beside = jars / ".coroutines.jar"
    with zipfile.ZipFile(kernel) as archive, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as coroutines:
        for name in sorted(archive.namelist()):
            if name.startswith(
                ("kotlinx/coroutines/", "_COROUTINE/", "META-INF/kotlinx-coroutines")
            ) and not name.endswith("/"):
                coroutines.writestr(zipfile.ZipInfo(name), archive.read(name))
    beside.rename(kotlin.coroutines)
    return kotlin


def fetch_debian(packages: tuple[str, ...]) -> Path:
    """Download and unpack Debian's packages, once; returns the folder that stands for /.

    Raises:
        UnavailableError: this is no Debian on amd64, or its packages cannot be reached.
    """
    root, stamp = TOOLS / "debian", TOOLS / f".unpacked-{len(packages)}-{packages[0]}"
    if stamp.is_file():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"there is no {tool}: this builds on Debian")
    configuration = _private_configuration(TOOLS / "apt")
    downloads = TOOLS / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    for words in (["update", "-qq"], ["download", "-qq", *packages]):
        found = subprocess.run(
            ["apt-get", *words], cwd=downloads, env={**os.environ, "APT_CONFIG": str(configuration)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if found.returncode != 0:
            reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UnavailableError(f"apt-get {words[0]} failed ({reason})")
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    shutil.rmtree(downloads)
    stamp.touch()
    return root


def _private_configuration(folder: Path) -> Path:
    """apt with lists of its own, so that the machine's stay as they are."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = [f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main" for suite in SUITES]
    (folder / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache::archives": folder / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        # Otherwise apt warns that its own user may not write into the folder.
        "APT::Sandbox::User": "root",
    }
    path = folder / "apt.conf"
    path.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()), encoding="utf-8")
    return path
