package vramfit

/*
#include "vramfit.h"
*/
import "C"

import "encoding/json"

// Status is the kind of an error.
type Status int32

// The kinds. FullNow, FullPending, StalePlan and Waits may pass: try again.
const (
	InvalidArgument    Status = C.VRAMFIT_STATUS_INVALID_ARGUMENT
	OpenFailed         Status = C.VRAMFIT_STATUS_OPEN
	ModelUnsupported   Status = C.VRAMFIT_STATUS_MODEL
	GPUsInvalid        Status = C.VRAMFIT_STATUS_GPUS
	SettingsInvalid    Status = C.VRAMFIT_STATUS_SETTINGS
	Refused            Status = C.VRAMFIT_STATUS_REFUSED
	NotModelled        Status = C.VRAMFIT_STATUS_NOT_MODELLED
	FullNow            Status = C.VRAMFIT_STATUS_FULL_NOW
	FullPending        Status = C.VRAMFIT_STATUS_FULL_PENDING
	NeverFits          Status = C.VRAMFIT_STATUS_NEVER_FITS
	UnknownGPU         Status = C.VRAMFIT_STATUS_UNKNOWN_GPU
	UnknownReservation Status = C.VRAMFIT_STATUS_UNKNOWN_RESERVATION
	StalePlan          Status = C.VRAMFIT_STATUS_STALE_PLAN
	Waits              Status = C.VRAMFIT_STATUS_WAITS
	TookTooMuch        Status = C.VRAMFIT_STATUS_TOOK_TOO_MUCH
	WrongPhase         Status = C.VRAMFIT_STATUS_PHASE
	NoGPU              Status = C.VRAMFIT_STATUS_NO_GPU
	KeyTaken           Status = C.VRAMFIT_STATUS_KEY_TAKEN
	StoreFailed        Status = C.VRAMFIT_STATUS_STORE
	Internal           Status = C.VRAMFIT_STATUS_INTERNAL
)

// Error says what is wrong and what would do, on one line.
type Error struct {
	Status   Status
	Message  string
	CanRetry bool            // the same call may succeed later with nothing else changed
	JSON     json.RawMessage // status, message and what else is known, such as the decision that refused
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, vramfit.FullNow) true for an error of that kind.
func (e *Error) Is(target error) bool {
	status, ok := target.(Status)
	return ok && status == e.Status
}

func (s Status) Error() string {
	switch s {
	case FullNow:
		return "no room now"
	case FullPending:
		return "no room while others start or leave"
	case NeverFits:
		return "does not fit even on empty GPUs"
	case UnknownReservation:
		return "no such reservation"
	default:
		return "vramfit: see the error's message"
	}
}

// failure makes a Go error of C's, and frees that.
func failure(status C.vramfit_status, from *C.vramfit_error) error {
	if status == C.VRAMFIT_STATUS_OK {
		return nil
	}
	defer C.vramfit_error_free(from)
	return &Error{
		Status:   Status(status),
		Message:  C.GoString(C.vramfit_error_message(from)),
		CanRetry: C.vramfit_error_can_retry(from) == 1,
		JSON:     json.RawMessage(C.GoString(C.vramfit_error_json(from))),
	}
}
