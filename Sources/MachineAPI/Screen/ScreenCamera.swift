package import BMC
import BareMetal
package import IaaS
package import Kubernetes

/// What takes a picture of a host's screen.
package struct ScreenCamera: Sendable {
  package typealias Take = @Sendable (_ host: BareMetalHost) async throws -> ScreenPicture

  let take: Take

  /// - Parameter take: Takes bounded time; throws `BMCError`, `BareMetalError` or `KubernetesError`.
  package init(_ take: @escaping Take) { self.take = take }

  /// Asks the hosts' BMCs, each with the account that its host names, which is read anew each time.
  package static func bmcs(of client: KubernetesClient, through pool: BMCClientPool) -> ScreenCamera {
    ScreenCamera { host in
      let contact = try await BMCContact(of: host) { name, namespace in
        try await client.get(Secret.self, name: name, namespace: namespace)
      }
      let bmc = try pool.client(for: contact.address, credentials: contact.credentials, trust: contact.trust)
      let outcome: Result<ScreenPicture, any Error>
      do { outcome = .success(try await bmc.screenshot()) } catch { outcome = .failure(error) }
      // Sessions are few on a BMC, and nobody knows whether there is a next picture.
      await pool.remove(contact.address)
      return try outcome.get()
    }
  }
}
