package import JSON

/// What the API tells about itself: its group, its resources and their schemas.
package enum Discovery {
  package static let groups: JSONValue = [
    "kind": "APIGroupList", "apiVersion": "v1", "groups": [groupBody],
  ]

  package static let group: JSONValue = {
    var value = groupBody
    value["kind"] = "APIGroup"
    value["apiVersion"] = "v1"
    return value
  }()

  private static let groupBody: JSONValue = {
    let version: JSONValue = [
      "groupVersion": .string(APIGroup.groupVersion), "version": .string(APIGroup.version),
    ]
    return ["name": .string(APIGroup.name), "versions": [version], "preferredVersion": version]
  }()

  package static let resources: JSONValue = [
    "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": .string(APIGroup.groupVersion),
    "resources": .array(
      MachineVerb.allCases.map { verb in
        [
          "name": .string("\(APIGroup.plural)/\(verb.rawValue)"), "singularName": "", "namespaced": true,
          "kind": .string(verb.kind), "verbs": [.string(verb.access)],
        ]
      }),
  ]

  // MARK: OpenAPI

  private static let information: JSONValue = ["title": .string(APIGroup.name), "version": .string(APIGroup.version)]
  private static let status = "io.yusur.iaas.subresources.v1.Status"

  private static func path(_ verb: MachineVerb) -> String {
    "\(APIGroup.path)/namespaces/{namespace}/\(APIGroup.plural)/{name}/\(verb.rawValue)"
  }

  private static func identifier(_ verb: MachineVerb) -> String {
    "\(verb.method == "PUT" ? "replace" : "read")SubresourcesV1NamespacedBareMetalMachine\(verb.rawValue.prefix(1).uppercased())\(verb.rawValue.dropFirst())"
  }

  private static func definition(_ kind: String) -> String { "io.yusur.iaas.subresources.v1.\(kind)" }

  /// The schemas of the bodies, by name.
  private static func schemas() -> [String: JSONValue] {
    let text: JSONValue = ["type": "string"]
    var common: [String: JSONValue] = [
      "apiVersion": text, "kind": text,
      "dryRun": [
        "type": "array", "items": text, "description": "[\"All\"] checks everything and changes nothing.",
      ],
      "preconditions": [
        "type": "object", "description": "What the machine must be, otherwise the answer is 409.",
        "properties": ["uid": text, "resourceVersion": text],
      ],
    ]
    func schema(_ description: String, _ properties: [String: JSONValue], required: [JSONValue] = []) -> JSONValue {
      var value: JSONValue = [
        "type": "object", "description": .string(description), "properties": .object(properties),
      ]
      if !required.isEmpty { value["required"] = .array(required) }
      return value
    }
    var schemas: [String: JSONValue] = [:]
    schemas[definition("StartOptions")] = schema("Options of start.", common)
    schemas[definition("StopOptions")] = schema("Options of stop.", common)
    let plain = common
    common["requestID"] = [
      "type": "string", "description": "The same id as that of the last request is the same request.",
    ]
    schemas[definition("RestartOptions")] = schema("Options of restart, reset and softreboot.", common)
    common = plain
    common["disk"] = ["type": "object", "description": "The element of spec.disks."]
    schemas[definition("AddDiskOptions")] = schema("Options of adddisk.", common, required: ["disk"])
    common = plain
    common["name"] = ["type": "string", "description": "The disk's name."]
    schemas[definition("RemoveDiskOptions")] = schema("Options of removedisk.", common, required: ["name"])
    common = plain
    common["requestID"] = [
      "type": "string", "description": "However often a request with one id comes, it is one request.",
    ]
    common["targetHost"] = [
      "type": "string", "description": "The host to move to; any that is free and fits where absent.",
    ]
    common["hostSelector"] = [
      "type": "object", "description": "Which hosts may be taken. Not together with targetHost.",
      "properties": ["matchLabels": ["type": "object", "additionalProperties": text]],
    ]
    common["graceSeconds"] = [
      "type": "integer", "minimum": 0, "maximum": 3600,
      "description": "How long the guest gets to shut down; 0 cuts its power at once.",
    ]
    schemas[definition("MigrateOptions")] = schema("Options of migrate.", common)
    schemas[status] = schema(
      "The outcome (metav1.Status).",
      ["apiVersion": text, "kind": text, "status": text, "message": text, "reason": text])
    return schemas
  }

  /// OpenAPI 2 (Swagger), which kube-apiserver merges into its own.
  package static let openAPI2: JSONValue = {
    var paths: [String: JSONValue] = [:]
    for verb in MachineVerb.allCases {
      var parameters: [JSONValue] = ["name", "namespace"].map {
        ["name": $0, "in": "path", "required": true, "type": "string", "uniqueItems": true]
      }
      for name in verb.parameters {
        parameters.append(["name": .string(name), "in": "query", "type": "string", "uniqueItems": true])
      }
      if verb.method == "PUT" {
        parameters.append([
          "name": "body", "in": "body", "schema": ["$ref": .string("#/definitions/\(definition(verb.kind))")],
        ])
      }
      var answer: JSONValue = ["description": "OK"]
      if verb.method == "PUT" { answer["schema"] = ["$ref": .string("#/definitions/\(status)")] }
      if verb == .screenshot { answer["schema"] = ["type": "file"] }
      let operation: JSONValue = [
        "description": .string(verb.summary), "operationId": .string(identifier(verb)),
        "consumes": ["application/json"],
        "produces": [.string(verb.produces)], "schemes": ["https"], "tags": ["subresources_v1"],
        "parameters": .array(parameters), "responses": ["200": answer, "401": ["description": "Unauthorized"]],
      ]
      paths[path(verb)] = [verb.method.lowercased(): operation]
    }
    return [
      "swagger": "2.0", "info": information, "paths": .object(paths),
      "definitions": .object(schemas()),
    ]
  }()

  package static let openAPI3Index: JSONValue = [
    "paths": [
      "apis/\(APIGroup.groupVersion)": ["serverRelativeURL": .string("/openapi/v3/apis/\(APIGroup.groupVersion)")]
    ]
  ]

  package static let openAPI3: JSONValue = {
    var paths: [String: JSONValue] = [:]
    for verb in MachineVerb.allCases {
      var parameters: [JSONValue] = ["name", "namespace"].map {
        ["name": $0, "in": "path", "required": true, "schema": ["type": "string"]]
      }
      for name in verb.parameters {
        parameters.append(["name": .string(name), "in": "query", "schema": ["type": "string"]])
      }
      var answer: JSONValue = ["description": "OK"]
      if verb == .screenshot {
        answer["content"] = .object([verb.produces: ["schema": ["type": "string", "format": "binary"]]])
      }
      var operation: JSONValue = [
        "description": .string(verb.summary), "operationId": .string(identifier(verb)), "tags": ["subresources_v1"],
        "parameters": .array(parameters), "responses": ["200": answer],
      ]
      if verb.method == "PUT" {
        operation["requestBody"] = [
          "content": [
            "application/json": ["schema": ["$ref": .string("#/components/schemas/\(definition(verb.kind))")]]
          ]
        ]
      }
      paths[path(verb)] = [verb.method.lowercased(): operation]
    }
    return [
      "openapi": "3.0.0", "info": information, "paths": .object(paths),
      "components": ["schemas": .object(schemas())],
    ]
  }()
}
