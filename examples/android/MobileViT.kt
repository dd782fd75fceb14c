// Runs an ONNX file of `mobilevit export MODEL --format onnx` and measures it.
//
// Not compiled or run where this project is tested: see README.md beside it.

package mobilevit

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.RectF
import android.os.Build
import android.os.PowerManager
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.min
import org.json.JSONArray
import org.json.JSONObject

data class Box(val name: String, val score: Float, val rectangle: RectF)

/** One model: a file of `mobilevit export`, opened in ONNX Runtime. */
class MobileViT(file: ByteArray, private val threads: Int = 2) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = environment.createSession(
        file, OrtSession.SessionOptions().apply { setIntraOpNumThreads(threads) },
    )
    private val texts = session.metadata.customMetadata
    private val rule = JSONObject(texts.getValue("preprocessing"))
    private val resizeMode = rule.getString("resize_mode")
    private val resize = rule.getInt("resize")
    private val side = rule.getInt("crop")
    val classes: List<String> = texts["classes"]?.takeIf { it != "null" }
        ?.let { JSONArray(it) }
        ?.let { names -> List(names.length()) { names.getString(it) } }
        .orEmpty()

    /** The image as the file takes it: resized and cropped; values are dealt with in the file. */
    fun framed(photo: Bitmap): ByteBuffer {
        val square = Bitmap.createBitmap(side, side, Bitmap.Config.ARGB_8888)
        val target = if (resizeMode == "crop") {
            val scale = resize.toFloat() / min(photo.width, photo.height)
            val (width, height) = photo.width * scale to photo.height * scale
            val (left, top) = (side - width) / 2 to (side - height) / 2
            RectF(left, top, left + width, top + height)
        } else {
            RectF(0f, 0f, side.toFloat(), side.toFloat())
        }
        // Bitmaps are made smaller by halves first, or filtering skips pixels.
        var small = photo
        while (small.width >= 2 * target.width() && small.height >= 2 * target.height()) {
            small = Bitmap.createScaledBitmap(small, small.width / 2, small.height / 2, true)
        }
        Canvas(square).drawBitmap(small, null, target, Paint(Paint.FILTER_BITMAP_FLAG))
        val colours = IntArray(side * side)
        square.getPixels(colours, 0, side, 0, 0, side, side)
        val pixels = ByteBuffer.allocateDirect(3 * colours.size).order(ByteOrder.nativeOrder())
        for (colour in colours) {
            pixels.put((colour shr 16).toByte()).put((colour shr 8).toByte()).put(colour.toByte())
        }
        pixels.rewind()
        return pixels
    }

    private fun <T> run(pixels: ByteBuffer, read: (OrtSession.Result) -> T): T {
        pixels.rewind()
        val shape = longArrayOf(1, side.toLong(), side.toLong(), 3)
        return OnnxTensor.createTensor(environment, pixels, shape, OnnxJavaType.UINT8).use { image ->
            session.run(mapOf("image" to image)).use(read)
        }
    }

    /** Classification: the likeliest classes. */
    fun top(pixels: ByteBuffer, count: Int = 5): List<Pair<String, Float>> = run(pixels) { answer ->
        @Suppress("UNCHECKED_CAST")
        val (shares) = answer.get("probabilities").get().value as Array<FloatArray>
        shares.withIndex().sortedByDescending { it.value }.take(count)
            .map { (classes.getOrNull(it.index) ?: "${it.index}") to it.value }
    }

    /** Detection: boxes from a score on, as shares of the framed image's sides. */
    @Suppress("UNCHECKED_CAST")
    fun boxes(pixels: ByteBuffer, least: Float = 0.3f): List<Box> = run(pixels) { answer ->
        val (corners) = answer.get("boxes").get().value as Array<Array<FloatArray>>
        val (scores) = answer.get("scores").get().value as Array<FloatArray>
        val (labels) = answer.get("labels").get().value as Array<IntArray>
        scores.indices.filter { scores[it] >= least && labels[it] >= 0 }.map {
            val (left, top, right, bottom) = corners[it]
            Box(classes.getOrNull(labels[it]) ?: "${labels[it]}", scores[it], RectF(left, top, right, bottom))
        }
    }

    /** Segmentation: the class of each pixel, row by row; a byte is a class from 0 to 255. */
    fun mask(pixels: ByteBuffer): ByteArray = run(pixels) { answer ->
        val mask = answer.get("mask").get() as OnnxTensor
        ByteArray(side * side).also { mask.byteBuffer.get(it) }
    }

    /** Times the model alone; `framed` is done before, so time that apart. */
    fun measure(context: Context, pixels: ByteBuffer, warmUps: Int = 20, runs: Int = 100): JSONObject {
        val power = context.getSystemService(PowerManager::class.java)
        val before = thermalStatus(power)
        repeat(warmUps) { run(pixels) {} }
        val times = List(runs) {
            val begun = System.nanoTime()
            run(pixels) {}
            (System.nanoTime() - begun) / 1e6
        }.sorted()
        return JSONObject()
            .put("device", "${Build.MANUFACTURER} ${Build.MODEL}")
            .put("system", "Android ${Build.VERSION.RELEASE}")
            .put("model", texts["model"]).put("format", texts["format"])  // with its precision
            .put("runtime", "ONNX Runtime ${environment.version}, CPU").put("threads", threads)
            .put("input", "$side x $side").put("batch", 1)
            .put("warm_ups", warmUps).put("runs", runs)
            .put("median_ms", times[runs / 2]).put("p90_ms", times[runs * 9 / 10])
            .put("min_ms", times[0])
            // 0 none, 1 light, 2 moderate, 3 severe and more: a hot phone is a slow one.
            .put("thermal_before", before).put("thermal_after", thermalStatus(power))
    }

    private fun thermalStatus(power: PowerManager): Int? =
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) power.currentThermalStatus else null

    override fun close() = session.close()
}
