/* The hook in another process: the controller's side of the files that the two share.
 *
 * A server that is started with LD_PRELOAD=libscope_hook.so and SCOPE_SHM=FOLDER maps FOLDER/control, which the
 * controller has made there. Commands go through a queue in that file, in order; the hook applies each between two
 * ubatches and writes down what came of it. Programs are files beside it, program-SERIAL.bin, read when they are held.
 * Nothing in any of them is a pointer; each side checks what it reads before it uses it. A folder is for one server
 * process: locks (server.lock, controller.lock, both flock) tell who is alive.
 *
 * Everything here may be called from any thread.
 */
#ifndef SCOPE_SHARED_H
#define SCOPE_SHARED_H

#include "scope_hook.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SCOPE_SHARED_VERSION 1u
#define SCOPE_MAX_SLOTS 256
#define SCOPE_MAX_EXPECTED 64
#define SCOPE_MAX_SPANS 64

enum scope_command_kind {
  SCOPE_COMMAND_HOLD = 1,    /* serial: load program-SERIAL.bin */
  SCOPE_COMMAND_RELEASE = 2, /* serial */
  SCOPE_COMMAND_ASSIGN = 3,  /* serial: the others'; n assigned */
  SCOPE_COMMAND_BEGIN = 4,   /* slot, request_id, serial, n_prompt (0: found by the first wanted output) */
  SCOPE_COMMAND_END = 5,     /* slot */
  SCOPE_COMMAND_EXPECT = 6   /* slot, n tokens: recognise the context that is given these, alone, from position 0 */
};

typedef struct {
  int32_t slot;
  uint32_t reserved;
  uint64_t serial;
} scope_slot_serial;

typedef struct {
  uint32_t kind; /* scope_command_kind */
  int32_t slot;
  uint64_t serial, request_id;
  int32_t n_prompt;
  uint32_t n;
  union {
    scope_slot_serial assigned[SCOPE_MAX_SLOTS];
    int32_t tokens[SCOPE_MAX_EXPECTED];
  };
} scope_command;

enum scope_server_state {
  SCOPE_SERVER_NONE = 0,       /* no server has come */
  SCOPE_SERVER_LOADED = 1,     /* the hook is in the process */
  SCOPE_SERVER_REACHED = 2,    /* llama.cpp's calls pass through it */
  SCOPE_SERVER_RECOGNISED = 3, /* the expected tokens came, all of them: context adopted, layout proved */
  SCOPE_SERVER_REFUSED = 4     /* the hook does nothing; `sentence` says why */
};

typedef struct {
  uint32_t abi_version;
  uint32_t state; /* scope_server_state */
  uint64_t pid;
  uint64_t last_serial;   /* the highest that was held */
  uint32_t attached;      /* scope_attach_bits */
  uint32_t n_layers_seen; /* blocks whose output was named in the expected batch */
  scope_hook_stats stats;
  char embedding_node[64]; /* "": none is known */
  char sentence[256];
} scope_server_status;

typedef struct {
  int32_t slot;
  uint32_t open; /* 1: a request is open */
  uint64_t request_id, serial;
  uint64_t first_serial;           /* what the request's first token was computed under; 0: none is known of */
  uint64_t n_columns, n_unsteered; /* of the request */
  uint64_t n_stray;                /* without a request, since the start */
  int32_t answer_start;            /* -1: not known yet */
  int32_t last_position;           /* -1: none */
  uint32_t abort, abort_rule;
  uint64_t abort_serial;
  int32_t abort_position;
  uint32_t n_spans; /* as of the last begin or end; may exceed SCOPE_MAX_SPANS */
  scope_span spans[SCOPE_MAX_SPANS];
} scope_slot_state;

typedef struct scope_control scope_control;

/* Makes FOLDER/control for a model; the folder must be there, private, and not have one. Ring: room for events. */
int scope_control_create(const char * folder, uint32_t n_embd, uint32_t n_layer, uint32_t ring_events,
                         scope_control ** out, char * err, size_t err_bytes);
/* Takes over from a controller that is gone. */
int scope_control_open(const char * folder, scope_control ** out, char * err, size_t err_bytes);
/* The files stay, and so does what is in force. */
void scope_control_close(scope_control * control);

/* The file's shape: width and blocks. */
void scope_control_model(const scope_control * control, uint32_t * n_embd, uint32_t * n_layer);
/* 1 while a server holds the folder. */
int scope_control_alive(const scope_control * control);
/* Queues a command; SCOPE_E_STATE when too many wait. Each number must be waited for until it is applied, or abandoned.
 */
int scope_control_send(scope_control * control, const scope_command * command, uint64_t * number, char * err,
                       size_t err_bytes);
/* 1: applied, and `code` and `err` say with what outcome. 0: not within the time; wait again or abandon it. */
int scope_control_wait(scope_control * control, uint64_t number, int32_t timeout_ms, int32_t * code, char * err,
                       size_t err_bytes);
void scope_control_abandon(scope_control * control, uint64_t number);
/* Consistent copies; SCOPE_E_STATE where the server died while it wrote. */
int scope_control_status(const scope_control * control, scope_server_status * out);
int scope_control_slot(const scope_control * control, int32_t slot, scope_slot_state * out);
/* As scope_hook_drain and scope_hook_dropped; one caller at a time. */
size_t scope_control_drain(scope_control * control, scope_event * out, size_t max);
uint64_t scope_control_dropped(const scope_control * control);

#ifdef __cplusplus
}
#endif
#endif
