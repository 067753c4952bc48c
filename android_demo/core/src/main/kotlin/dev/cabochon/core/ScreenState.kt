package dev.cabochon.core

enum class Activity { IDLE, PREPARING, DOWNLOADING, RECORDING, TRANSLATING }

/** All that the screen shows. */
data class ScreenState(
    val activity: Activity = Activity.IDLE,
    /** One sentence. */
    val status: String = "",
    val languages: List<String> = emptyList(),
    val source: String = "",
    val target: String = "",
    val transcript: String = "",
    val translation: String = "",
    val statistics: Statistics? = null,
    /** Of the whole process, behind a finished answer. */
    val memoryMegabytes: Long? = null,
    val isModelReady: Boolean = false,
    /** Of a download that is going on. */
    val progress: TransferProgress? = null,
    /** From where an earlier process was downloading when it ended. */
    val unfinishedAddress: String? = null,
)
