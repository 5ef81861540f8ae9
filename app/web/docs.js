// Without validatorUrl: null, Swagger UI would send this document to another host.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null });
