import groovy.json.JsonSlurper
import java.security.MessageDigest

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "dev.cabochon.demo"
    compileSdk = libs.versions.targetSdk.get().toInt()
    defaultConfig {
        applicationId = "dev.cabochon.demo"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += "arm64-v8a" }
    }
    androidResources {
        // Tables and weights do not get smaller, and are copied out once.
        noCompress += listOf("bin", "data", "onnx")
    }
}

kotlin {
    jvmToolchain(21)
}

dependencies {
    implementation(project(":core"))
    // -Pcabochon.engine=ort takes onnxruntime instead, for packages of --target onnx.
    implementation(project(":engine-${providers.gradleProperty("cabochon.engine").getOrElse("litertlm")}"))
}

/** The assets are those that cabochon-convert wrote, all of them and unaltered, and of the given package. */
val checkModelAssets = tasks.register("checkModelAssets") {
    val folder = layout.projectDirectory.dir("src/main/assets/model").asFile
    val packageFolder = providers.gradleProperty("cabochon.package").orNull?.let(::File)
    doLast {
        fun sha256(file: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            file.forEachBlock { bytes, count -> digest.update(bytes, 0, count) }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
        val again = "run  cabochon-convert android PACKAGE --app android_demo  again."
        val index = folder.resolve("assets.json")
        if (!index.isFile) throw GradleException("there are no model assets in $folder: $again")
        @Suppress("UNCHECKED_CAST")
        val json = JsonSlurper().parse(index) as Map<String, Any>
        @Suppress("UNCHECKED_CAST")
        val files = (json["files"] as List<Map<String, Any>>).filter { it["delivery"] == "asset" }
        files.forEach {
            val file = folder.resolve(it["path"] as String)
            if (!file.isFile || sha256(file) != it["sha256"]) throw GradleException("the asset ${file.name} is stale: $again")
        }
        val listed = files.map { folder.resolve(it["path"] as String) } + index
        val extra = folder.walkTopDown().firstOrNull { it.isFile && it !in listed }
        if (extra != null) throw GradleException("the asset ${extra.name} is in no list: $again")
        val manifest = packageFolder?.resolve("manifest.json") ?: return@doLast
        if (sha256(manifest) != json["package_sha256"]) throw GradleException("the assets are not of $packageFolder: $again")
    }
}
tasks.named("preBuild") { dependsOn(checkModelAssets) }
