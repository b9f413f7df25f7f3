import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    // The nearest there is to where Convex runs functions.
    environment: "edge-runtime",
    server: { deps: { inline: ["convex-test"] } },
    // Videos are made by a real service, which may have to start a replica first.
    testTimeout: 120_000,
  },
});
