"""A signed APK of the demo's own sources, with Debian's packages alone: Android 6's interfaces, and no engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from pathlib import Path

from debian_toolchain import APK_PACKAGES, REPOSITORY, Kotlin, fetch_debian

ANDROID_DEMO = REPOSITORY / "android_demo"
APP = ANDROID_DEMO / "app" / "src" / "main"
APPLICATION, VERSION_CODE, VERSION_NAME = "dev.cabochon.demo", "1", "0.1.0"
# dx keeps default methods of interfaces from Android 8 on.
MINIMUM_API, TARGET_API = "26", "29"
NAMESPACE = "http://schemas.android.com/apk/res/android"
PASSWORD = "cabochon"  # of a key that is made for each checkout, for sideloading only

Compile = Callable[[Kotlin, list[Path], Path, list[Path], list[str]], None]


class StaleAssetError(Exception):
    """The app's assets are not what the converter wrote."""


def build_apk(kotlin: Kotlin, compile_kotlin: Compile, build: Path) -> str:
    """Compile, pack, align, sign and look at what came out; returns what to print about it.

    Raises:
        UnavailableError: Debian's packages cannot be had.
        StaleAssetError: an asset was altered since the converter wrote it.
    """
    refuse_stale_assets(APP / "assets" / "model")
    debian = fetch_debian(APK_PACKAGES)
    work = build / "apk"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (framework,) = (debian / "usr/share/android-framework-res").glob("*.apk")
    android = debian / "usr/lib/android-sdk/platforms/android-23/android.jar"
    manifest = work / "AndroidManifest.xml"
    manifest.write_bytes(_complete_manifest(APP / "AndroidManifest.xml"))
    packing = ["package", "-f", "-M", str(manifest), "-S", str(APP / "res"), "-I", str(framework)]
    generated = work / "generated"
    generated.mkdir()
    _run_tool(debian, "aapt", *packing, "-m", "-J", str(generated))
    classes = work / "classes"
    classes.mkdir()
    java = [str(path) for folder in (generated, APP / "java") for path in sorted(folder.rglob("*.java"))]
    javac = ["javac", "-nowarn", "-Xlint:-options", "--release", "8", "-d", str(classes), "-cp", str(android)]
    subprocess.run([*javac, *java], check=True)
    libraries = [android, classes, kotlin.standard_library, kotlin.coroutines]
    sources = [ANDROID_DEMO / "core/src/main/kotlin", APP / "kotlin"]
    # Without the JDK's classes: what Android lacks does not compile.
    compile_kotlin(kotlin, sources, classes, libraries, ["-no-jdk", "-module-name", "app"])
    standard_library = work / "standard-library"
    with zipfile.ZipFile(kotlin.standard_library) as archive:
        names = [name for name in archive.namelist() if not name.startswith("META-INF/versions")]
        archive.extractall(standard_library, names)
    dex = work / "dex"
    dex.mkdir()
    dx = debian / "usr/lib/android-sdk/build-tools/debian/lib/dx.jar"
    dx_path = os.pathsep.join(map(str, [dx, *(debian / "usr/share/java").glob("com.android.dx*.jar")]))
    command = ["java", "-Xmx2g", "-cp", dx_path, "com.android.dx.command.Main", "--dex"]
    command += [f"--min-sdk-version={MINIMUM_API}", f"--output={dex / 'classes.dex'}"]
    subprocess.run([*command, str(classes), str(standard_library), str(kotlin.coroutines)], check=True)
    unaligned, aligned, signed = work / "unaligned.apk", work / "aligned.apk", build / "cabochon-demo.apk"
    stored = [word for extension in ("bin", "data", "onnx") for word in ("-0", extension)]
    _run_tool(debian, "aapt", *packing, "-A", str(APP / "assets"), *stored, "-F", str(unaligned))
    _add_stored(unaligned, dex / "classes.dex")
    _run_tool(debian, "zipalign", "-p", "-f", "4", str(unaligned), str(aligned))
    _sign(debian, aligned, signed, build / "sideload.keystore")
    return _inspect(debian, signed, dex / "classes.dex")


def refuse_stale_assets(folder: Path) -> None:
    """Compare assets with what the converter noted about them."""
    again = "run  cabochon-convert android PACKAGE --app android_demo  again"
    index = folder / "assets.json"
    if not index.is_file():
        raise StaleAssetError(f"there are no model assets in {folder}: {again}.")
    records = json.loads(index.read_text(encoding="utf-8"))["files"]
    listed = [folder / record["path"] for record in records if record["delivery"] == "asset"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in (index, *listed):
            raise StaleAssetError(f"the asset {path} is in no list: {again}.")
    for record in records:
        path = folder / record["path"]
        if record["delivery"] != "asset":
            continue
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
            raise StaleAssetError(f"the asset {path} is stale: {again}.")


def _complete_manifest(path: Path) -> bytes:
    """What Gradle puts into a manifest from its build files."""
    ET.register_namespace("android", NAMESPACE)
    root = ET.parse(path).getroot()
    root.set("package", APPLICATION)
    root.set(f"{{{NAMESPACE}}}versionCode", VERSION_CODE)
    root.set(f"{{{NAMESPACE}}}versionName", VERSION_NAME)
    sdk = {f"{{{NAMESPACE}}}minSdkVersion": MINIMUM_API, f"{{{NAMESPACE}}}targetSdkVersion": TARGET_API}
    root.insert(0, ET.Element("uses-sdk", sdk))
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _add_stored(apk: Path, dex: Path) -> None:
    with zipfile.ZipFile(apk, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("classes.dex"), dex.read_bytes(), zipfile.ZIP_DEFLATED)


def _sign(debian: Path, aligned: Path, signed: Path, keystore: Path) -> None:
    if not keystore.is_file():
        command = ["keytool", "-genkeypair", "-keystore", str(keystore), "-storepass", PASSWORD, "-keypass", PASSWORD]
        command += ["-alias", "sideload", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000"]
        command += ["-dname", "CN=cabochon demo"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    words = ["sign", "--ks", str(keystore), "--ks-pass", f"pass:{PASSWORD}", "--out", str(signed), str(aligned)]
    _run_apksigner(debian, *words)


def _inspect(debian: Path, apk: Path, dex: Path) -> str:
    """Verify alignment and signature, and that the dex file holds what was compiled."""
    _run_tool(debian, "zipalign", "-c", "-p", "4", str(apk))
    verified = _run_apksigner(debian, "verify", "--verbose", "--min-sdk-version", MINIMUM_API, str(apk))
    schemes = re.findall(r"Verified using (v\d) scheme .*: true", verified)
    if not {"v2", "v3"} <= set(schemes):
        raise SystemExit(f"{apk} is signed by {', '.join(schemes) or 'nothing'}, expected v2 and v3.")
    listing = _run_tool(debian, "dexdump", str(dex))
    classes = re.findall(r"Class descriptor\s*: 'L([\w/$]+);'", listing)
    own = [name for name in classes if name.startswith("dev/cabochon/")]
    for name in (
        "dev/cabochon/demo/MainActivity", "dev/cabochon/demo/DownloadService", "dev/cabochon/core/GraphTranslator",
        "kotlinx/coroutines/Job",
    ):  # fmt: skip
        if name not in classes:
            raise SystemExit(f"{apk} lacks the class {name}.")
    badging = _run_tool(debian, "aapt", "dump", "badging", str(apk))
    activity = re.search(r"launchable-activity: name='([\w.]+)'", badging)
    if activity is None or activity[1] != f"{APPLICATION}.MainActivity":
        raise SystemExit(f"{apk} has no launchable activity.")
    manifest = _run_tool(debian, "aapt", "dump", "xmltree", str(apk), "AndroidManifest.xml")
    service = manifest.partition("E: service")[2]
    if '".DownloadService"' not in service or "foregroundServiceType(0x01010599)=(type 0x11)0x1" not in service:
        raise SystemExit(f"{apk} has no service of the type dataSync.")
    layout = _run_tool(debian, "aapt", "dump", "xmltree", str(apk), "res/layout/main.xml")
    elements = re.findall(r"E: (\w+)", layout)
    return (
        f"{apk.relative_to(REPOSITORY)}: {apk.stat().st_size / 1e6:.1f} MB, aligned, "
        f"signed by {' and '.join(schemes)}; "
        f"{len(classes)} classes, {len(own)} of them the demo's; the screen has {len(elements)} elements"
    )


def _run_tool(debian: Path, name: str, *words: str) -> str:
    tool = debian / "usr/lib/android-sdk/build-tools/debian" / name
    libraries = [debian / "usr/lib" / each for each in ("x86_64-linux-gnu/android", "x86_64-linux-gnu", "", "p7zip")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    found = subprocess.run([str(tool), *words], env=environment, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise SystemExit(f"{name} failed: {(found.stderr or found.stdout).strip()}")
    return found.stdout


def _run_apksigner(debian: Path, *words: str) -> str:
    jars = [debian / "usr/share/java" / name for name in ("apksigner.jar", "apksig.jar")]
    command = ["java", "-cp", os.pathsep.join(map(str, jars)), "com.android.apksigner.ApkSignerTool", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise SystemExit(f"apksigner failed: {(found.stderr or found.stdout).strip()}")
    return found.stdout
