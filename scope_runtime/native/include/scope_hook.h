/* The whole boundary between Python (or a preloaded llama-server) and the native hook.
 *
 * One scope_hook serves one llama_context. Threads: everything marked [decode] must be called by the thread that
 * decodes, or while no decode runs (the engine holds its lock); everything marked [any] may be called at any time.
 * Functions that can fail return 0 on success and a negative scope_status_code otherwise, and write one sentence for a
 * person into the caller's error buffer (always terminated, may be NULL with size 0).
 */
#ifndef SCOPE_HOOK_H
#define SCOPE_HOOK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SCOPE_ABI_VERSION 3u

typedef struct scope_hook scope_hook;
typedef struct scope_program scope_program;

enum scope_status_code {
  SCOPE_OK = 0,
  SCOPE_E_INVALID = -1, /* the bytes or arguments are not what they should be */
  SCOPE_E_MEMORY = -2,
  SCOPE_E_MISMATCH = -3, /* width or layers do not fit the hook's model */
  SCOPE_E_MISSING = -4,  /* a symbol or attach point is not to be had */
  SCOPE_E_STATE = -5     /* called in the wrong order, or for an unknown sequence */
};

uint32_t scope_abi_version(void);
/* Compiler, and the kernel variant chosen for this CPU: "avx512", "avx2", "neon" or "generic". */
const char * scope_build_info(void);

/* -- programs ------------------------------------------------------------------------------------------------- */

/* Checks every count and offset, the checksum, finite numbers, then copies. [any] */
int scope_program_load(const void * data, size_t n_bytes, scope_program ** out, char * err, size_t err_bytes);
/* Only for a program that the hook did not take. */
void scope_program_free(scope_program * program);

/* -- hook ----------------------------------------------------------------------------------------------------- */

/* A hook for a model of n_layer blocks and width n_embd. Needs no llama.cpp: driven by hand through
 * scope_hook_columns and scope_hook_residual it is also the dry run and the offline replay. */
int scope_hook_new(uint32_t n_embd, uint32_t n_layer, uint32_t ring_events, scope_hook ** out, char * err,
                   size_t err_bytes);
/* The context must be gone (or its callback cleared) before. */
void scope_hook_free(scope_hook * hook);

/* -- which sequence runs under which program. An assignment says it for all of them; it is never changed, only replaced
 * as a whole, by one atomic pointer, between two ubatches: no ubatch sees two. `serial` names a program in events and
 * spans and must be above every one before. NULL is a program that does nothing. [any] */

/* Makes `program` that of every sequence from the next ubatch on. Takes ownership on success; it is freed when nothing
 * runs under it any more. */
int scope_hook_install(scope_hook * hook, scope_program * program, uint64_t serial, char * err, size_t err_bytes);
/* Takes ownership of a program that is to be assigned, and keeps it until it is released. */
int scope_hook_hold(scope_hook * hook, scope_program * program, uint64_t serial, char * err, size_t err_bytes);
/* Lets go of one: freed when no assignment names it and no ubatch sees it. SCOPE_E_STATE: it is not held. */
int scope_hook_release(scope_hook * hook, uint64_t serial);
/* From the next ubatch on seq[i] runs under serial[i], and every other sequence under `others`; 0 is nothing. Each must
 * be held or in the assignment before. `number` (may be NULL) becomes this assignment's number. A column that belongs
 * to requests of several sequences is steered only if all of them run under one program; else it is left alone and
 * counts as unmatched. */
int scope_hook_assign(scope_hook * hook, uint64_t others, const int32_t * seq, const uint64_t * serial, size_t n,
                      uint64_t * number, char * err, size_t err_bytes);
/* 1 if the ubatch that is under way, and every one from now on, runs under the newest assignment; 0 if one is still
 * under way that does not. */
int scope_hook_in_force(scope_hook * hook);
/* Frees what no ubatch can still see; returns how many assignments must wait. */
size_t scope_hook_collect(scope_hook * hook);
/* Serial that the last begun ubatch gave to sequences that nothing else was said about (0: none yet), and the number of
 * the assignment it ran under. */
uint64_t scope_hook_acknowledged(const scope_hook * hook);
uint64_t scope_hook_assignment(const scope_hook * hook);

/* -- attach: see attach.cpp -------------------------------------------------------------------------------------- */

/* Handles (dlopen) of the libllama and libggml-base that are already mapped; finds the functions the hook needs in
 * them. Call once per process, before the first context is made. [any, once] */
int scope_attach(void * libllama, void * libggml_base, char * err, size_t err_bytes);

/* Takes the first context made without the hook's callback, chaining the callback that its owner set: an unmodified
 * llama_cpp.Llama or llama-server. One context at a time, until it is freed; NULL: none from now on. [decode] */
int scope_attach_default(scope_hook * hook);

enum scope_attach_bits {
  SCOPE_ATTACH_CALLBACK = 1u << 0, /* set_eval_callback seen through our symbol */
  SCOPE_ATTACH_COLUMNS = 1u << 1,  /* set_inputs seen through our symbol, layout proved */
  SCOPE_ATTACH_MEMORY = 1u << 2    /* memory functions resolved; in-library calls seen */
};
/* What has been seen to work for this hook so far, as scope_attach_bits. */
uint32_t scope_hook_attached(const scope_hook * hook);

/* Values for llama_context_params.cb_eval / cb_eval_user_data (user data is the hook). */
void * scope_hook_callback(void);
/* The context's memory (llama_get_memory), so that the interposed memory functions find this hook. [decode] */
int scope_hook_bind_memory(scope_hook * hook, void * memory, char * err, size_t err_bytes);
/* A callback that the context's owner had asked for: called for every node after ours. [decode] */
void scope_hook_chain(scope_hook * hook, void * cb_eval, void * user_data);

/* Layout proof for the columns attach point: the next ubatch must show exactly these columns. Call, decode the batch,
 * then read scope_hook_attached. [decode] */
int scope_hook_expect_columns(scope_hook * hook, uint32_t n, const int32_t * tokens, const int32_t * pos,
                              const int32_t * seq, const int8_t * output);

/* Name of the embedding hook point's node ("embd", "inp_scaled", "model.input_embed"), or NULL. Unsteerable until set.
 */
int scope_hook_embedding_node(scope_hook * hook, const char * name);

/* Names of nodes seen by the callback since the last call with reset, for probing: writes up to n_bytes of
 * '\n'-separated names of nodes that start with "l_out-" or are candidates of the embedding. [decode] */
void scope_hook_record_names(scope_hook * hook, int on);
size_t scope_hook_names(const scope_hook * hook, char * out, size_t n_bytes);

/* -- columns and residuals by hand --------------------------------------------------------------------------------- */

/* Begins an ubatch: what the columns attach point does by itself. Used where that is missing (one sequence, at most
 * n_ubatch tokens a decode) and offline. `output` may be NULL: all wanted. [decode] */
int scope_hook_columns(scope_hook * hook, uint32_t n, const int32_t * tokens, const int32_t * pos, const int32_t * seq,
                       const int8_t * output);
/* Runs the current programs at one hook point on (n_rows, n_embd) row-major residuals, in place. n_rows must be the
 * ubatch's columns, or its output columns (last block). Returns 1 if anything was changed, 0 if not, < 0 on error.
 * [decode] */
int scope_hook_residual(scope_hook * hook, int32_t layer, float * h, uint32_t n_rows);
/* Closes the ubatch: commits its measurements to the sequences. Implied by the next ubatch, a memory call or a request
 * call; the engine calls it after each decode. [decode] */
void scope_hook_end_ubatch(scope_hook * hook);

/* -- capture ------------------------------------------------------------------------------------------------------- */

/* Copies residuals as they arrive, before any change, at these layers (SCOPE_LAYER_EMBEDDING too), from the next
 * decode on; n_layers 0: no more. Every column's row is taken, whether or not its sequence has a request; at the last
 * block most models have rows for the wanted outputs alone. At most `capacity_rows` wait to be taken; what finds no
 * room is lost and counted. Drops what waits. [decode] */
int scope_hook_capture(scope_hook * hook, const int32_t * layers, uint32_t n_layers, size_t capacity_rows);
typedef struct {
  int32_t layer, sequence, position, token;
} scope_captured_row;
/* How many rows wait; how many were lost since scope_hook_capture. [decode] */
size_t scope_hook_captured(const scope_hook * hook, uint64_t * n_lost);
/* Takes all rows that wait: `rows` has room for each, `h` for (rows, n_embd). [decode] */
void scope_hook_take_captured(scope_hook * hook, scope_captured_row * rows, float * h);

/* -- requests ------------------------------------------------------------------------------------------------------ */

/* n_prompt counts from position 0; 0: not known, the answer starts at the first column whose logits are wanted.
 * Columns of sequences without an open request are neither steered nor counted
 * (warm-up, encode, other users). Tokens already in the sequence (a reused prefix) keep their measurements and count
 * for this request. [decode] */
int scope_request_begin(scope_hook * hook, int32_t seq, uint64_t request_id, int32_t n_prompt);
/* Publishes the alerts still held back, one SUMMARY event a (program, rule), then REQUEST_END. [decode] */
int scope_request_end(scope_hook * hook, int32_t seq);

typedef struct {
  uint32_t abort;        /* 1: the generation must end */
  uint32_t abort_rule;   /* the alert rule that asked, or SCOPE_NONE: the dose limit */
  uint64_t abort_serial; /* program that the rule index belongs to */
  int32_t abort_position;
  uint32_t n_firing; /* alert rules firing at the last committed token */
} scope_request_state;
int scope_request_status(scope_hook * hook, int32_t seq, scope_request_state * out);

/* Under which programs the sequence's KV was computed: runs of equal serial over positions, ascending. Returns how
 * many there are (may exceed max). Positions restored from a saved state carry serial UINT64_MAX: unknown. [decode] */
typedef struct {
  int32_t from_position, to_position;
  uint64_t serial;
} scope_span; /* to is exclusive */
size_t scope_sequence_spans(scope_hook * hook, int32_t seq, scope_span * out, size_t max);

/* Measurements of one token position of a sequence: activation and dose per rule (NaN where not measured), for tests,
 * trace and explain. Returns the number of rules, 0 if the position is unknown. [decode] */
size_t scope_sequence_measured(scope_hook * hook, int32_t seq, int32_t position, float * activation, float * dose,
                               uint8_t * fired, size_t max);

/* -- memory -------------------------------------------------------------------------------------------------------- */
/* A removal that reaches a sequence's last position takes its tokens back: their measurements, alerts not yet published
 * and abort are gone. One from the middle (context shift) lets them leave the KV but not the request's record. A shift
 * of the last position, once the answer has begun, moves where the answer counts from. So end a request before its
 * sequence is cleared.
 *
 * The hook also exports llama_memory_clear, _seq_rm, _seq_cp, _seq_keep, _seq_add, _seq_div and
 * llama_state_seq_set_data, llama_state_seq_set_data_ext, llama_state_set_data, llama_state_load_file,
 * llama_state_seq_load_file under their own names: each notes the change for the hook bound to that memory and calls
 * the real one. Embedded engines call these exports; preloaded, they interpose. The notes alone: */
void scope_memory_clear(scope_hook * hook);
void scope_memory_seq_rm(scope_hook * hook, int32_t seq, int32_t p0, int32_t p1); /* seq < 0: all; p < 0: open */
void scope_memory_seq_cp(scope_hook * hook, int32_t src, int32_t dst, int32_t p0, int32_t p1);
void scope_memory_seq_keep(scope_hook * hook, int32_t seq);
void scope_memory_seq_add(scope_hook * hook, int32_t seq, int32_t p0, int32_t p1, int32_t delta);
void scope_memory_restored(scope_hook * hook, int32_t seq, int32_t n_positions); /* seq < 0: all */

/* -- events -------------------------------------------------------------------------------------------------------- */

enum scope_event_kind {
  SCOPE_EVENT_ALERT_FIRING = 1,
  SCOPE_EVENT_ALERT_RESOLVED = 2,
  SCOPE_EVENT_SUMMARY = 3,     /* per request, program and rule */
  SCOPE_EVENT_REQUEST_END = 4, /* n_tokens: columns counted in the request */
  SCOPE_EVENT_DOSE_EXCESS = 5 /* first time in a request that the dose limit acted; dose_max holds the dose asked for */
};
typedef struct { /* 96 bytes, fixed for ABI versions 1 and 2 */
  uint32_t kind;
  int32_t sequence;
  uint64_t request_id;
  uint64_t serial;                       /* program */
  int64_t time_ns;                       /* CLOCK_REALTIME */
  uint32_t rule;                         /* index in that program, or SCOPE_NONE */
  int32_t layer;                         /* of the measurement (alerts, dose excess); else -2 */
  uint32_t n_tokens;                     /* tokens at which the rule was in scope and measured */
  uint32_t n_fired;                      /* of those, at how many it acted (alert: was firing) */
  uint32_t n_limited;                    /* of those, at how many the dose limit cut it */
  int32_t first_position, last_position; /* of n_fired; -1 when none */
  float activation_max;
  double activation_sum; /* over measured tokens; mean = sum / n_measured */
  uint32_t n_measured;   /* tokens with an activation (amplify has none) */
  float dose_max;
  double dose_sum; /* over n_fired */
  uint64_t reserved;
} scope_event;

/* Lock-free, one producer (decode), one consumer. A full ring drops the newest and counts it. [any, one consumer] */
size_t scope_hook_drain(scope_hook * hook, scope_event * out, size_t max);
uint64_t scope_hook_dropped(const scope_hook * hook);

typedef struct {
  uint64_t n_ubatches, n_columns, n_residuals; /* residuals: hook points visited */
  uint64_t n_unmatched;         /* hook points that were not steered though they should have been: an error. Rows that
                                   fit neither columns nor outputs, a program's point that never came by in its ubatch, or
                                   columns that requests under different programs share */
  uint64_t n_unsteered_columns; /* columns without an open request, or raw embeddings */
  uint64_t hook_ns;             /* time spent inside the hook, without its answers to which nodes it wants */
  uint64_t n_swaps, swap_ns,
      swap_ns_max; /* assignments published (installs too); time that took: the latest, the most */
} scope_hook_stats;
void scope_hook_get_stats(const scope_hook * hook, scope_hook_stats * out);

#ifdef __cplusplus
}
#endif
#endif
