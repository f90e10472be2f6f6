#include "CLinux.h"

#include <openssl/evp.h>
#include <string.h>

struct clinux_xts {
  EVP_CIPHER_CTX *encrypt;
  EVP_CIPHER_CTX *decrypt;
};

void clinux_xts_free(struct clinux_xts *cipher) {
  if (!cipher) return;
  EVP_CIPHER_CTX_free(cipher->encrypt);
  EVP_CIPHER_CTX_free(cipher->decrypt);
  OPENSSL_free(cipher);
}

struct clinux_xts *clinux_xts_new(const unsigned char *keys, size_t length) {
  const EVP_CIPHER *kind = length == 32 ? EVP_aes_128_xts() : length == 64 ? EVP_aes_256_xts() : NULL;
  struct clinux_xts *cipher = kind ? OPENSSL_zalloc(sizeof(*cipher)) : NULL;
  if (!cipher) return NULL;
  cipher->encrypt = EVP_CIPHER_CTX_new();
  cipher->decrypt = EVP_CIPHER_CTX_new();
  if (!cipher->encrypt || !cipher->decrypt || EVP_EncryptInit_ex(cipher->encrypt, kind, NULL, keys, NULL) != 1 ||
      EVP_DecryptInit_ex(cipher->decrypt, kind, NULL, keys, NULL) != 1) {
    clinux_xts_free(cipher);
    return NULL;
  }
  return cipher;
}

int clinux_xts_crypt(struct clinux_xts *cipher, int encrypt, uint64_t block, unsigned char *data, size_t length) {
  unsigned char tweak[16] = {0};
  int done = 0;
  for (int i = 0; i < 8; i++) tweak[i] = (unsigned char)(block >> (8 * i));
  EVP_CIPHER_CTX *context = encrypt ? cipher->encrypt : cipher->decrypt;
  if (EVP_CipherInit_ex(context, NULL, NULL, NULL, tweak, -1) != 1) return -1;
  return EVP_CipherUpdate(context, data, &done, data, (int)length) == 1 && (size_t)done == length ? 0 : -1;
}
