import ArgumentParser

@main
struct FleetBench: AsyncParsableCommand {
  func run() async throws {}
}
