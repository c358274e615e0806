// The API's description, shown by Swagger UI.

SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true });
