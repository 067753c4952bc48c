plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    jvmToolchain(21)
}

dependencies {
    api(libs.coroutines.core)
    testImplementation(libs.junit)
}

tasks.test {
    // Python with onnxruntime: -Pcabochon.python=../.venv/bin/python
    systemProperty("cabochon.python", providers.gradleProperty("cabochon.python").getOrElse("python3"))
    systemProperty("cabochon.bridge", rootDir.resolve("bridge/onnxruntime_bridge.py").path)
    systemProperty("cabochon.textbridge", rootDir.resolve("bridge/random_texts.py").path)
    systemProperty("cabochon.model", rootDir.resolve("app/src/main/assets/model").path)
    inputs.dir(rootDir.resolve("app/src/main/assets/model"))
}
