// What the attach points tell whoever controls a hook from outside of the process.
#pragma once

#include <mutex>

namespace scope {

/// Called by attach.cpp for a hook that has one. An embedded hook has none: its owner makes the calls itself.
class Attachment {
 public:
  virtual ~Attachment() = default;

  /// Held by the decode thread while it begins or ends an ubatch or follows the memory, never while one is computed.
  virtual std::mutex & gate() = 0;
  /// [any] llama.cpp's calls come to us.
  virtual void reached() = 0;
  /// [decode, gate held] Whether this ubatch, of a context that nobody hooked, is of the one to take.
  virtual bool recognises(const void * ubatch) = 0;
  /// [decode, gate held] An ubatch of that context, before it begins.
  virtual void arrives(const void * ubatch) = 0;
  /// [decode, gate held] No ubatch is open: requests may begin and end.
  virtual void between_ubatches() = 0;
  /// [any] The context is gone.
  virtual void context_gone() = 0;
};

/// Locks the gate of a hook that is controlled from outside.
class Gate {
 public:
  explicit Gate(Attachment * attachment) {
    if (attachment != nullptr) lock_ = std::unique_lock<std::mutex>(attachment->gate());
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace scope
