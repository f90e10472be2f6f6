#include "CLinux.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The socket stays with the caller: the library reads from bytes that were handed to it, and writes into memory that it
// was lent for the call.
struct clinux_tls {
  SSL *ssl;
  const unsigned char *in;
  size_t in_length;
  unsigned char *out;
  size_t out_length;
  size_t out_capacity;
};

// MARK: Bytes in memory, as the library's kind of file

static BIO_METHOD *memory_method;
static int keys_index;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int memory_read(BIO *bio, char *data, int length) {
  struct clinux_tls *tls = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  if (tls->in_length == 0) {
    BIO_set_retry_read(bio);
    return -1;
  }
  size_t part = (size_t)length < tls->in_length ? (size_t)length : tls->in_length;
  memcpy(data, tls->in, part);
  tls->in += part;
  tls->in_length -= part;
  return (int)part;
}

static int memory_write(BIO *bio, const char *data, int length) {
  struct clinux_tls *tls = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  size_t room = tls->out_capacity - tls->out_length;
  if (room == 0) {
    BIO_set_retry_write(bio);
    return -1;
  }
  size_t part = (size_t)length < room ? (size_t)length : room;
  memcpy(tls->out + tls->out_length, data, part);
  tls->out_length += part;
  return (int)part;
}

static long memory_control(BIO *bio, int command, long number, void *pointer) {
  (void)bio, (void)number, (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

// MARK: Pre-shared keys

struct shared_key {
  struct shared_key *next;
  size_t length;
  unsigned char bytes[64];
  char name[];
};

static void free_keys(void *parent, void *keys, CRYPTO_EX_DATA *data, int index, long number, void *pointer) {
  (void)parent, (void)data, (void)index, (void)number, (void)pointer;
  for (struct shared_key *key = keys; key;) {
    struct shared_key *next = key->next;
    OPENSSL_cleanse(key->bytes, sizeof(key->bytes));
    free(key);
    key = next;
  }
}

static unsigned find_key(SSL *ssl, const char *name, unsigned char *bytes, unsigned capacity) {
  const struct shared_key *key = SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), keys_index);
  for (; name && key; key = key->next) {
    if (strcmp(key->name, name) != 0) continue;
    if (key->length > capacity) return 0;
    memcpy(bytes, key->bytes, key->length);
    return (unsigned)key->length;
  }
  return 0;
}

// Reads lines NAME:HEX; the number of keys, or -1 where a line is another.
static int load_keys(SSL_CTX *context, const char *path) {
  FILE *file = fopen(path, "re");
  if (!file) return -1;
  struct shared_key *first = NULL;
  char line[1024];
  int count = 0;
  while (count >= 0 && fgets(line, sizeof(line), file)) {
    size_t length = strcspn(line, "\r\n");
    if (line[length] == 0 && !feof(file)) count = -1;  // longer than any that is sound
    line[length] = 0;
    if (length == 0 || line[0] == '#' || count < 0) continue;
    char *colon = strrchr(line, ':');
    struct shared_key *key = colon && colon > line ? calloc(1, sizeof(*key) + (size_t)(colon - line) + 1) : NULL;
    long read = 0;
    unsigned char *bytes = key ? OPENSSL_hexstr2buf(colon + 1, &read) : NULL;
    if (bytes && read >= 16 && read <= (long)sizeof(key->bytes)) {
      memcpy(key->name, line, (size_t)(colon - line));
      memcpy(key->bytes, bytes, (size_t)read);
      key->length = (size_t)read;
      key->next = first;
      first = key;
      count++;
    } else {
      free(key);
      count = -1;
    }
    if (bytes) OPENSSL_clear_free(bytes, (size_t)read);
  }
  OPENSSL_cleanse(line, sizeof(line));
  fclose(file);
  SSL_CTX_set_ex_data(context, keys_index, first);
  return count > 0 ? count : -1;
}

// MARK: What connections have in common

static void set_up(void) {
  memory_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "lent memory");
  if (memory_method) {
    BIO_meth_set_read(memory_method, memory_read);
    BIO_meth_set_write(memory_method, memory_write);
    BIO_meth_set_ctrl(memory_method, memory_control);
  }
  keys_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_keys);
}

// A key with a passphrase is an error, not a question on a terminal.
static int no_passphrase(char *buffer, int size, int writing, void *data) {
  (void)buffer, (void)size, (void)writing, (void)data;
  return -1;
}

void clinux_tls_reason(char *text, size_t capacity) {
  unsigned long code = ERR_peek_error();
  const char *reason = code ? ERR_reason_error_string(code) : NULL;
  if (!reason) reason = code && ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code)) : "the peer broke the protocol";
  snprintf(text, capacity, "%s", reason);
}

struct clinux_tls_context *clinux_tls_context_new(const char *certificate, const char *key, const char *ca,
                                                  const char *shared_keys, enum clinux_tls_file *failed) {
  pthread_once(&once, set_up);
  ERR_clear_error();
  *failed = CLINUX_TLS_NONE;
  SSL_CTX *context = memory_method ? SSL_CTX_new(TLS_server_method()) : NULL;
  if (!context) return NULL;
  SSL_CTX_set_default_passwd_cb(context, no_passphrase);
  // Sessions are not resumed: clients connect once and stay.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  const char *suites = shared_keys ? "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256"
                                   : "ECDHE+AESGCM:ECDHE+CHACHA20";
  if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1 ||
      SSL_CTX_set_cipher_list(context, suites) != 1) {
    goto failure;
  }
  if (shared_keys) {
    *failed = CLINUX_TLS_SHARED_KEYS;
    if (load_keys(context, shared_keys) < 0) goto failure;
    SSL_CTX_set_psk_server_callback(context, find_key);
    SSL_CTX_set_dh_auto(context, 1);
  } else {
    *failed = CLINUX_TLS_CERTIFICATE;
    if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1) goto failure;
    *failed = CLINUX_TLS_KEY;
    if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(context) != 1) {
      goto failure;
    }
  }
  if (ca) {
    *failed = CLINUX_TLS_CA;
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(ca);
    if (!names) goto failure;
    SSL_CTX_set_client_CA_list(context, names);
    if (SSL_CTX_load_verify_locations(context, ca, NULL) != 1) goto failure;
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  }
  *failed = CLINUX_TLS_NONE;
  return (struct clinux_tls_context *)context;
failure:
  SSL_CTX_free(context);
  return NULL;
}

void clinux_tls_context_free(struct clinux_tls_context *context) { SSL_CTX_free((SSL_CTX *)context); }

// MARK: One connection

struct clinux_tls *clinux_tls_new(struct clinux_tls_context *context) {
  struct clinux_tls *tls = calloc(1, sizeof(*tls));
  if (!tls) return NULL;
  BIO *bio = BIO_new(memory_method);
  tls->ssl = bio ? SSL_new((SSL_CTX *)context) : NULL;
  if (!tls->ssl) {
    BIO_free(bio);
    free(tls);
    return NULL;
  }
  BIO_set_data(bio, tls);
  BIO_set_init(bio, 1);
  SSL_set_bio(tls->ssl, bio, bio);
  SSL_set_accept_state(tls->ssl);
  SSL_set_mode(tls->ssl, SSL_MODE_RELEASE_BUFFERS);
  return tls;
}

void clinux_tls_free(struct clinux_tls *tls) {
  if (!tls) return;
  SSL_free(tls->ssl);
  free(tls);
}

int clinux_tls_is_ready(const struct clinux_tls *tls) { return SSL_is_init_finished(tls->ssl); }

void clinux_tls_keep_buffers(struct clinux_tls *tls) { SSL_clear_mode(tls->ssl, SSL_MODE_RELEASE_BUFFERS); }

const char *clinux_tls_version(const struct clinux_tls *tls) { return SSL_get_version(tls->ssl); }

void clinux_tls_lend_input(struct clinux_tls *tls, const void *bytes, size_t length) {
  tls->in = bytes;
  tls->in_length = length;
}

void clinux_tls_lend_output(struct clinux_tls *tls, void *memory, size_t capacity) {
  tls->out = memory;
  tls->out_length = 0;
  tls->out_capacity = capacity;
}

size_t clinux_tls_take_output(struct clinux_tls *tls) {
  size_t length = tls->out_length;
  clinux_tls_lend_output(tls, NULL, 0);
  return length;
}

static ssize_t outcome(const struct clinux_tls *tls, int result, size_t done) {
  if (result == 1) return (ssize_t)done;
  switch (SSL_get_error(tls->ssl, result)) {
    case SSL_ERROR_WANT_READ: return -EAGAIN;
    case SSL_ERROR_WANT_WRITE: return -ENOBUFS;
    case SSL_ERROR_ZERO_RETURN: return 0;
    default: return -EPROTO;
  }
}

ssize_t clinux_tls_read(struct clinux_tls *tls, void *data, size_t length) {
  size_t done = 0;
  ERR_clear_error();
  return outcome(tls, SSL_read_ex(tls->ssl, data, length, &done), done);
}

ssize_t clinux_tls_write(struct clinux_tls *tls, const void *data, size_t length) {
  size_t done = 0;
  ERR_clear_error();
  return outcome(tls, SSL_write_ex(tls->ssl, data, length, &done), done);
}

void clinux_tls_finish(struct clinux_tls *tls) {
  ERR_clear_error();
  // Only after a handshake: before it there is no session to end.
  if (SSL_is_init_finished(tls->ssl)) SSL_shutdown(tls->ssl);
}
