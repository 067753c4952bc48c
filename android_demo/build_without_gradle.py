"""Tests the Android demo's core on the JVM, and builds a signed APK, without Android Studio.

python android_demo/build_without_gradle.py test [--tokenizer FILE [--texts COUNT] [--seed NUMBER]]
python android_demo/build_without_gradle.py apk
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from debian_apk import StaleAssetError, build_apk
from debian_toolchain import (
    REPOSITORY,
    TEST_PACKAGES,
    Kotlin,
    UnavailableError,
    fetch_debian,
    fetch_kotlin,
    require_java,
)

ANDROID_DEMO = REPOSITORY / "android_demo"
CORE = ANDROID_DEMO / "core"
BUILD = REPOSITORY / "build" / "android"
LONGEST_TEST_SECONDS = 300
"""Of all tests together: a coroutine that fails to end would wait for ever."""
# dx of Debian knows class files up to Java 8, and no invokedynamic.
KOTLIN_OPTIONS = (
    "-no-stdlib", "-no-reflect", "-jvm-target", "1.8", "-Xlambdas=class", "-Xsam-conversions=class",
    "-Xstring-concat=inline", "-nowarn",
)  # fmt: skip


def main() -> int:
    """Run what the command line asks for; 0 as well where Debian's packages cannot be had, with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("test", "apk"))
    parser.add_argument(
        "--tokenizer", type=Path, help="compare random texts with this tokenizer.json, and nothing else"
    )
    parser.add_argument("--texts", type=int, default=4000, help="how many random texts")
    parser.add_argument("--seed", type=int, default=1, help="of the random texts")
    arguments = parser.parse_args()
    texts = RandomTexts(arguments.texts, arguments.seed, arguments.tokenizer)
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        require_java()
        if arguments.what == "test":
            kotlin = fetch_kotlin()
            path = compile_tests(kotlin)
            if texts.tokenizer is not None:
                compare_tokenizer(path, texts)
            else:
                names = sorted(test.stem for test in (CORE / "src/test/kotlin").rglob("*Test.kt"))
                run_tests(path, names, texts)
                compile_engines(kotlin)
        else:
            print(build_apk(fetch_kotlin(), compile_kotlin, BUILD))
    except UnavailableError as error:
        print(f"skipped: {error}.")
    except StaleAssetError as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def compile_kotlin(kotlin: Kotlin, sources: list[Path], classes: Path, path: list[Path], options: list[str]) -> None:
    """Compile Kotlin into a folder, against jars and folders."""
    classes.mkdir(parents=True, exist_ok=True)
    command = ["java", "-Xmx1500m", "-cp", kotlin.compiler_path, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
    command += [*KOTLIN_OPTIONS, *options, "-d", str(classes), "-cp", os.pathsep.join(map(str, path))]
    files = [str(file) for folder in sources for file in sorted(folder.rglob("*.kt"))]
    subprocess.run([*command, *files], check=True)


@dataclass(frozen=True, slots=True)
class RandomTexts:
    """What the tokenizer is compared with Python's on."""

    count: int
    seed: int
    tokenizer: Path | None
    """A tokenizer.json; None: the one of the app's model."""


def compile_tests(kotlin: Kotlin) -> list[Path]:
    """Compile the core and its tests; returns the class path to run them with."""
    debian = fetch_debian(TEST_PACKAGES)
    jars = [debian / "usr/share/java" / name for name in ("junit4.jar", "hamcrest.jar")]
    libraries = [kotlin.standard_library, kotlin.coroutines, *jars]
    core, tests = BUILD / "core-classes", BUILD / "core-test-classes"
    compile_kotlin(kotlin, [CORE / "src/main/kotlin"], core, libraries, ["-module-name", "core"])
    friends = [f"-Xfriend-paths={core}", "-module-name", "core-test"]
    compile_kotlin(kotlin, [CORE / "src/test/kotlin"], tests, [core, *libraries], friends)
    return [tests, core, CORE / "src/test/resources", *libraries]


def run_tests(path: list[Path], names: list[str], texts: RandomTexts) -> None:
    """Run classes of tests, with onnxruntime and Python's tokenizer in processes beside them."""
    properties = {
        "cabochon.python": sys.executable,
        "cabochon.bridge": ANDROID_DEMO / "bridge/onnxruntime_bridge.py",
        "cabochon.textbridge": ANDROID_DEMO / "bridge/random_texts.py",
        "cabochon.model": ANDROID_DEMO / "app/src/main/assets/model",
        "cabochon.texts": texts.count,
        "cabochon.seed": texts.seed,
    }
    if texts.tokenizer is not None:
        properties["cabochon.tokenizer"] = texts.tokenizer.resolve()
    command = ["java", "-ea", *(f"-D{key}={value}" for key, value in properties.items())]
    command += ["-cp", os.pathsep.join(map(str, path)), "org.junit.runner.JUnitCore"]
    command += [f"dev.cabochon.core.{name}" for name in names]
    subprocess.run(command, check=True, timeout=LONGEST_TEST_SECONDS)


def compare_tokenizer(path: list[Path], texts: RandomTexts) -> None:
    """Compare one tokenizer with Python's, and print what it costs."""
    run_tests(path, ["TokenizerComparisonTest"], texts)
    command = ["java", "-cp", os.pathsep.join(map(str, path)), "dev.cabochon.core.TokenizerCost", str(texts.tokenizer)]
    subprocess.run(command, check=True, timeout=LONGEST_TEST_SECONDS)


def compile_engines(kotlin: Kotlin) -> None:
    """Compile the engines against what was noted of their libraries' interfaces, which no public registry here has."""
    libraries = [kotlin.standard_library, kotlin.coroutines, BUILD / "core-classes"]
    for engine in ("ort", "litertlm"):
        sources = [ANDROID_DEMO / "api-stubs" / engine, ANDROID_DEMO / f"engine-{engine}/src/main/kotlin"]
        compile_kotlin(kotlin, sources, BUILD / f"engine-{engine}-classes", libraries, ["-module-name", engine])
        print(f"engine-{engine} fits the interfaces that it was written for")


if __name__ == "__main__":
    sys.exit(main())
