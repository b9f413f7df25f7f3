import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";

export const status = v.union(
  v.literal("uploading"),
  v.literal("queued"),
  v.literal("processing"),
  v.literal("completed"),
  v.literal("failed"),
);

/** What the video service said of one of its jobs. */
export const news = v.object({
  externalJobId: v.string(),
  status,
  outputVideoUrl: v.optional(v.string()),
  errorMessage: v.optional(v.string()),
});

export default defineSchema({
  videoJobs: defineTable({
    userId: v.string(),
    model: v.union(v.literal("ltx2"), v.literal("wav2lip")),
    sourceImageId: v.optional(v.id("_storage")),
    prompt: v.optional(v.string()),
    durationSeconds: v.optional(v.number()),
    sourceVideoId: v.optional(v.id("_storage")),
    sourceAudioId: v.optional(v.id("_storage")),
    status,
    externalJobId: v.optional(v.string()),
    outputVideoUrl: v.optional(v.string()),
    errorMessage: v.optional(v.string()),
    createdAt: v.number(),
    completedAt: v.optional(v.number()),
  })
    .index("by_user", ["userId"])
    .index("by_status", ["status"])
    .index("by_model", ["model"])
    .index("by_external_job", ["externalJobId"]),

  /** News of jobs that no row has told of yet: a webhook may be faster than the answer to `generate`. */
  earlyNews: defineTable(news).index("by_external_job", ["externalJobId"]),
});
