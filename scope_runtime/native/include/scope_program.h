/* The compiled program as the hook reads it: one flat, little-endian, position-independent blob.
 *
 * Written by scope_runtime/program.py, read by the hook after every offset and count has been checked against the
 * blob's size. Nothing in it is a pointer, so that the same bytes can come from a file in shared memory.
 * Offsets are bytes from the start of the blob; every table starts at a multiple of 8, every float row at one of 64.
 * tests/test_program_format.py holds these layouts against the Python writer.
 */
#ifndef SCOPE_PROGRAM_H
#define SCOPE_PROGRAM_H

#include <stdint.h>

#define SCOPE_PROGRAM_MAGIC "SCOPEPRG" /* 8 bytes, no terminator */
#define SCOPE_PROGRAM_VERSION 1u
#define SCOPE_LAYER_EMBEDDING (-1) /* the hook point before block 0 */
#define SCOPE_NONE 0xffffffffu     /* "no such index" in every uint32 index below */

/* scope_rule.op: what the policy's author wrote */
enum scope_op {
  SCOPE_OP_AMPLIFY = 0,
  SCOPE_OP_MUTE = 1,
  SCOPE_OP_SCALE = 2,
  SCOPE_OP_CLAMP = 3,
  SCOPE_OP_ABLATE = 4,
  SCOPE_OP_ALERT = 5
};
enum scope_mode { SCOPE_MODE_ENFORCE = 0, SCOPE_MODE_AUDIT = 1 };
enum scope_phase { SCOPE_PHASE_ANY = 0, SCOPE_PHASE_PROMPT = 1, SCOPE_PHASE_GENERATION = 2 };
enum scope_positions_of { SCOPE_POSITIONS_SEQUENCE = 0, SCOPE_POSITIONS_ANSWER = 1 };
enum scope_gate { SCOPE_GATE_NONE = 0, SCOPE_GATE_RELU = 1, SCOPE_GATE_THRESHOLD = 2, SCOPE_GATE_TOPK = 3 };
enum scope_watch { SCOPE_WATCH_MAX = 0, SCOPE_WATCH_SUM = 1 };
enum scope_on_excess { SCOPE_EXCESS_NONE = 0, SCOPE_EXCESS_CLAMP = 1, SCOPE_EXCESS_WARN = 2, SCOPE_EXCESS_ABORT = 3 };
/* scope_delta_op.kind: how the change to the residual is computed. ADD is bit-identical to llama.cpp's control vector:
 * alpha is multiplied in at compile time, in F32, and the row is added as it is. */
enum scope_delta {
  SCOPE_DELTA_SCALE = 0,        /* a*z*d; mute: a = -1; scale: a = factor - 1 */
  SCOPE_DELTA_CLAMP = 1,        /* (clip(z, a, b) - z)*d; an absent bound is -inf / +inf */
  SCOPE_DELTA_ADD = 2,          /* row */
  SCOPE_DELTA_ADD_RESIDUAL = 3, /* a*||h||*row, row of unit length */
  SCOPE_DELTA_ABLATE = 4        /* -Q^T(Q h), Q = `rank` orthonormal rows starting at row */
};
enum scope_alert_action { SCOPE_ACTION_ABORT = 1u << 0 }; /* log, metric, webhook are the sinks' business */

typedef struct {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes; /* sizeof(scope_program_header) */
  uint64_t total_bytes;
  uint64_t checksum;  /* CRC-32 as zlib's, zero-extended, of bytes [header_bytes, total_bytes) */
  uint8_t digest[32]; /* SHA-256 of the same bytes and of the header with digest and checksum zeroed */
  uint32_t n_embd;
  uint32_t n_layer;
  uint32_t n_rules, n_points, n_features, n_triggers, n_trigger_features, n_deltas, n_encoders;
  uint32_t on_excess; /* scope_on_excess */
  float dose_max;     /* largest ||delta||/||h|| at one hook point; +inf when there is no limit */
  uint32_t reserved;
  uint64_t off_rules, off_points, off_features, off_triggers, off_trigger_features, off_deltas, off_encoders;
} scope_program_header;

typedef struct {
  uint32_t op;           /* scope_op */
  uint32_t mode;         /* scope_mode */
  uint32_t phase;        /* scope_phase */
  uint32_t positions_of; /* scope_positions_of */
  int32_t pos_from;      /* inclusive; INT32_MIN when open. With ANSWER, 0 is the first `generation` column */
  int32_t pos_to;        /* inclusive; INT32_MAX when open */
  uint32_t condition;    /* trigger that must be firing at this token for the rule to act, or SCOPE_NONE */
  uint32_t switch_on;    /* trigger that must have fired at this token or one before, or SCOPE_NONE */
  uint32_t alert;        /* op == ALERT: its trigger, active only in the rule's scope; else SCOPE_NONE */
  uint32_t actions;      /* op == ALERT: scope_alert_action bits */
} scope_rule;

typedef struct {                      /* one hook point, sorted by layer ascending, each layer once */
  int32_t layer;                      /* -1 embedding, else 0-based block */
  uint32_t first_feature, n_features; /* features measured here */
  uint32_t first_delta, n_deltas;     /* deltas applied here, sorted by rule */
  uint32_t reserved;
} scope_point;

typedef struct {    /* z = gate(w.h + b) */
  uint32_t gate;    /* scope_gate */
  uint32_t encoder; /* TOPK: index of the layer's full encoder, else SCOPE_NONE */
  uint32_t latent;  /* TOPK: this feature's row in that encoder */
  float threshold;  /* THRESHOLD: z = pre if pre > threshold else 0 */
  float bias;
  uint32_t reserved;
  uint64_t off_row; /* w, n_embd floats */
} scope_feature;

typedef struct { /* a full encoder, for exact top-k */
  uint32_t d_sae, k;
  uint64_t off_rows; /* (d_sae, n_embd) floats */
  uint64_t off_bias; /* d_sae floats */
} scope_encoder;

typedef struct {                      /* a value watched over tokens: alert, condition and switch alike */
  uint32_t first_feature, n_features; /* range of the trigger_features table (uint32 feature indices) */
  uint32_t watch;                     /* scope_watch over its features */
  uint32_t point;                     /* evaluated here: the deepest point of its features */
  float above, below;                 /* active when value > above or value < below; +inf / -inf when unused */
  float hysteresis;                   /* above 0: while firing, active until value < above - h (or > below + h) */
  uint32_t for_tokens;                /* consecutive active tokens before it fires; 0 and 1 both mean at once */
  uint32_t keep_tokens;               /* tokens it goes on firing after the value is no longer active */
  uint32_t reserved;
} scope_trigger;

typedef struct { /* one contribution to the residual's change at a point */
  uint32_t rule;
  uint32_t kind;    /* scope_delta */
  uint32_t feature; /* SCALE, CLAMP: index of the feature; else SCOPE_NONE */
  uint32_t rank;    /* ABLATE: rows of Q; else 1 */
  float a, b;
  uint64_t off_row; /* d, alpha*d, unit d, or Q */
} scope_delta_op;

#endif
