// Runs a Core ML file of `mobilevit export MODEL --format coreml` and measures it.
//
// Not compiled or run where this project is tested: see README.md beside it.

import CoreGraphics
import CoreML
import Foundation
import UIKit

/// One model: a package of `mobilevit export`, compiled by Xcode or on the device.
final class MobileViT {
    /// What the weights' preprocessing says of a photo's size; values are dealt with in the file.
    struct Frame: Decodable {
        let resize_mode: String  // crop, stretch
        let resize: Int
        let crop: Int
    }

    struct Box {
        let name: String
        let score: Float
        /// As shares of the framed image's sides.
        let rectangle: CGRect
    }

    let model: MLModel
    /// Where the compiled model lies, for `placement(of:)`.
    let compiled: URL
    let units: MLComputeUnits
    let texts: [String: String]
    let frame: Frame
    let classes: [String]

    /// - Parameters:
    ///   - package: a `.mlpackage` in the app's bundle or documents.
    ///   - units: where to compute; `.all` lets Core ML take the Neural Engine.
    init(package: URL, units: MLComputeUnits = .all) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        compiled = try await MLModel.compileModel(at: package)
        self.units = units
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        texts =
            model.modelDescription.metadata[.creatorDefinedKey] as? [String: String] ?? [:]
        frame = try JSONDecoder().decode(Frame.self, from: Data(texts["preprocessing", default: ""].utf8))
        classes = try JSONDecoder().decode([String]?.self, from: Data(texts["classes", default: "null"].utf8)) ?? []
    }

    /// The image as the file takes it: upright, resized and cropped as `preprocessing` says.
    func framed(_ photo: UIImage) throws -> MLFeatureValue {
        let side = CGFloat(frame.crop)
        let format = UIGraphicsImageRendererFormat()
        format.scale = 1
        let square = CGSize(width: side, height: side)
        let drawn = UIGraphicsImageRenderer(size: square, format: format).image { context in
            context.cgContext.interpolationQuality = .high
            var target = CGRect(origin: .zero, size: square)
            if frame.resize_mode == "crop" {
                let scale = CGFloat(frame.resize) / min(photo.size.width, photo.size.height)
                let size = CGSize(width: photo.size.width * scale, height: photo.size.height * scale)
                target = CGRect(
                    x: (side - size.width) / 2, y: (side - size.height) / 2,
                    width: size.width, height: size.height)
            }
            photo.draw(in: target)  // turns it upright
        }
        guard let pixels = drawn.cgImage,
            let constraint = model.modelDescription.inputDescriptionsByName["image"]?.imageConstraint
        else { throw CocoaError(.fileReadCorruptFile) }
        return try MLFeatureValue(cgImage: pixels, constraint: constraint, options: nil)
    }

    func run(_ image: MLFeatureValue) throws -> MLFeatureProvider {
        try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["image": image]))
    }

    /// Classification: the likeliest classes.
    func top(_ count: Int, of answer: MLFeatureProvider) -> [(name: String, probability: Float)] {
        let shares = MLShapedArray<Float>(answer.featureValue(for: "probabilities")!.multiArrayValue!)
        return shares.scalars.enumerated().sorted { $0.element > $1.element }.prefix(count)
            .map { (classes.indices.contains($0.offset) ? classes[$0.offset] : "\($0.offset)", $0.element) }
    }

    /// Detection: boxes from a score on.
    func boxes(of answer: MLFeatureProvider, from least: Float = 0.3) -> [Box] {
        let corners = MLShapedArray<Float>(answer.featureValue(for: "boxes")!.multiArrayValue!).scalars
        let scores = MLShapedArray<Float>(answer.featureValue(for: "scores")!.multiArrayValue!).scalars
        let labels = MLShapedArray<Int32>(answer.featureValue(for: "labels")!.multiArrayValue!).scalars
        return scores.indices.filter { scores[$0] >= least && labels[$0] >= 0 }.map { i in
            let (x, y) = (CGFloat(corners[4 * i]), CGFloat(corners[4 * i + 1]))
            let (right, bottom) = (CGFloat(corners[4 * i + 2]), CGFloat(corners[4 * i + 3]))
            let rectangle = CGRect(x: x, y: y, width: right - x, height: bottom - y)
            let label = Int(labels[i])
            let name = classes.indices.contains(label) ? classes[label] : "\(label)"
            return Box(name: name, score: scores[i], rectangle: rectangle)
        }
    }

    /// Segmentation: the class of each pixel, row by row.
    func mask(of answer: MLFeatureProvider) -> [Int32] {
        MLShapedArray<Int32>(answer.featureValue(for: "mask")!.multiArrayValue!).scalars
    }
}

/// What to write down beside a latency, or it cannot be compared.
struct Measurement: Codable {
    let device: String  // such as iPhone13,2, an iPhone 12
    let system: String
    let model: String
    let format: String  // JSON, with its precision
    let inputSize: Int
    let units: String
    let warmUps: Int
    let runs: Int
    let medianMilliseconds: Double
    let p90Milliseconds: Double
    let minimumMilliseconds: Double
    /// 0 nominal, 1 fair, 2 serious, 3 critical: a hot phone is a slow one.
    let thermalStateBefore: Int
    let thermalStateAfter: Int
}

extension MobileViT {
    /// Times the model alone; `framed` is done before, so time that apart.
    func measure(_ image: MLFeatureValue, warmUps: Int = 20, runs: Int = 100) throws -> Measurement {
        let before = ProcessInfo.processInfo.thermalState.rawValue
        for _ in 0..<warmUps { _ = try run(image) }
        let clock = ContinuousClock()
        let times = try (0..<runs).map { _ in
            let took = try clock.measure { _ = try run(image) }
            return Double(took.components.attoseconds) / 1e15 + Double(took.components.seconds) * 1e3
        }.sorted()
        return Measurement(
            device: machine(), system: UIDevice.current.systemVersion,
            model: texts["model", default: ""], format: texts["format", default: ""],
            inputSize: frame.crop, units: name(of: units),
            warmUps: warmUps, runs: runs,
            medianMilliseconds: times[runs / 2], p90Milliseconds: times[runs * 9 / 10],
            minimumMilliseconds: times[0],
            thermalStateBefore: before,
            thermalStateAfter: ProcessInfo.processInfo.thermalState.rawValue)
    }
}

/// The phone's kind, as Apple numbers them.
func machine() -> String {
    var system = utsname()
    uname(&system)
    return withUnsafeBytes(of: &system.machine) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
}

func name(of units: MLComputeUnits) -> String {
    switch units {
    case .all: return "all"
    case .cpuAndGPU: return "cpuAndGPU"
    case .cpuAndNeuralEngine: return "cpuAndNeuralEngine"
    case .cpuOnly: return "cpuOnly"
    @unknown default: return "\(units.rawValue)"
    }
}

/// How many operations Core ML means to run where: the Neural Engine, the GPU, the CPU.
@available(iOS 17.4, *)
func placement(of compiled: URL, units: MLComputeUnits = .all) async throws -> [String: Int] {
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units
    let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
    guard case .program(let program) = plan.modelStructure else { return [:] }
    var counts: [String: Int] = [:]
    for operation in program.functions["main"]?.block.operations ?? [] {
        guard let usage = plan.deviceUsage(for: operation) else { continue }  // constants
        let place: String
        switch usage.preferred {
        case .neuralEngine: place = "neural engine"
        case .gpu: place = "gpu"
        case .cpu: place = "cpu"
        @unknown default: place = "other"
        }
        counts[place, default: 0] += 1
    }
    return counts
}
