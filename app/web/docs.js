// validatorUrl: null, or Swagger UI would show this document to another host.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null });
